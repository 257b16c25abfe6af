"""What the kernels' layout costs in a whole model: activations into panels and results back out of them.

    python benchmarks/bench_layout.py

A product with a matrix without a single stored weight does nothing but that: it turns its input into panels, and panels
of zeros into its output. So the layout's share of a model is the time of such products, one for each call that the
model makes and on that call's input, over the time of the model, in bursts of five calls in one process, medians of CPU
seconds on one thread. Where query, key, value and attention are one call it is what that call takes with empty matrices
beyond attention between tensors that are there. An upper bound: any product has to write its output, and a call from
Python has its own cost.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers import BertForSequenceClassification

import dsee
from bench_kernels import masked
from common import SHAPES, config, in_turns, keep
from dsee.kernels import SparseMatrix, attention, on_kernels, pack, sparse_linear
from dsee.kernels.linear import OnKernels, Packed
from dsee.kernels.pair import both
from dsee.kernels.self_attention import Projection, self_attention
from dsee.measure.sample import sample_inputs
from dsee.runtime.one_call_attention import STATE, OneCall

BATCHES = [(1, 96), (1, 128), (8, 128), (2, 384)]
ZEROS = (0.5, 0.7, 0.8)


class Empty:
    """What stands in for a layer: its shape, and nothing stored."""

    def __init__(self, layer: OnKernels) -> None:
        self.matrix = pack(torch.zeros(layer.packed().shape), "blocks")
        self._parameters: dict[str, None] = {"bias": None}
        self._dsee_sparse = Packed("blocks")

    def packed(self) -> SparseMatrix:
        """Return the matrix."""
        return self.matrix


Calls = list[Callable[[], torch.Tensor]]


def layout_of(model: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[Calls, Calls]:
    """Calls that do what the model does without a weight to multiply with, and attention as far as it is in them."""
    seen: dict[nn.Module, torch.Tensor] = {}
    layers = on_kernels(model).values()
    whole = [module for module in model.modules() if isinstance(module, OneCall)]

    def keep_input(layer: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        seen[layer] = args[0]

    hooks = [module.register_forward_pre_hook(keep_input) for module in [*layers, *whole]]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    calls: Calls = []
    between: Calls = []
    within: set[nn.Module] = set()
    for module in whole:
        parts, dim = module.__dict__[STATE], module.attention_head_size
        three = [module.get_submodule(name) for name in (parts.query, parts.key, parts.value)]
        within.update(three)
        x = seen[module]
        made = [Projection(Empty(layer).matrix, None) for layer in three if isinstance(layer, OnKernels)]
        calls.append(partial(self_attention, x, *made, dim, scale=dim**-0.5))
        q = torch.randn(*x.shape[:2], made[0].matrix.shape[0] // dim, dim).transpose(1, 2)
        between.append(partial(attention, q, q, q, scale=dim**-0.5))
    for layer in layers:
        if layer in within or layer._dsee_sparse.leader is not None:
            continue
        follower = layer._dsee_sparse.follower
        if follower is None:
            calls.append(partial(sparse_linear, seen[layer], Empty(layer).matrix))
        else:
            calls.append(partial(both, Empty(layer), Empty(follower), seen[layer]))
    return calls, between


def main() -> None:
    """Print and keep the shares."""
    torch.set_num_threads(1)
    found = []
    for shape in SHAPES:
        torch.manual_seed(0)
        dense = BertForSequenceClassification(config(shape)).eval()
        for zeros in ZEROS:
            model = masked(dense, "blocks", zeros)
            for batch, sequence in BATCHES:
                if batch * sequence > 768 and shape != "MiniLM-L6":
                    continue
                inputs = sample_inputs(model, batch, sequence)
                with torch.inference_mode():
                    chosen = dsee.optimize(model, sample_inputs(model, 1, sequence), rounds=3)
                    (layers, between), joined = layout_of(model, inputs), chosen.pairs
                    calls = {
                        "model": lambda model=model, inputs=inputs: model(**inputs),
                        "layout": lambda layers=layers: [layer() for layer in layers],
                        "attention": lambda between=between: [call() for call in between],
                    }
                    seconds, _ = in_turns(calls, rounds=6 if batch * sequence <= 128 else 2)
                    chosen.undo()
                share = (seconds["layout"] - seconds["attention"]) / seconds["model"]
                row = {"shape": shape, "zeros": zeros, "batch": batch, "sequence": sequence}
                row |= {"calls": len(layers), "joined": joined, "attentions": len(between)}
                found.append(row | {"model_ms": 1e3 * seconds["model"], "layout_share": share})
                print(
                    f"{shape} blocks {zeros:.0%}, {batch} x {sequence}: {len(layers)} calls of the kernels, "
                    f"{1e3 * seconds['model']:.1f} ms, layout {share:.1%}",
                    flush=True,
                )
    keep("layout", found)


if __name__ == "__main__":
    main()
