"""What the kernels' layout costs in a whole model: activations into panels and results back out of them.

    python benchmarks/bench_layout.py

A product with a matrix without a single stored weight does nothing but that: it turns its input into panels, and panels
of zeros into its output. So the layout's share of a model is the time of such products, one for each layer on the
kernels and on that layer's input, over the time of the model, turn by turn in one process, medians of CPU seconds on
one thread. An upper bound: any product has to write its output, and each call from Python costs some microseconds.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import BertForSequenceClassification

import dsee
from bench_kernels import masked
from common import SHAPES, config, cpu_seconds, keep
from dsee.kernels import on_kernels, pack, sparse_linear
from dsee.measure.sample import sample_inputs

BATCHES = [(1, 96), (1, 128), (8, 128), (2, 384)]
ZEROS = (0.5, 0.7, 0.8)


def keep_input(seen: dict[str, torch.Tensor], name: str, args: tuple[torch.Tensor, ...]) -> None:
    """Note what a layer was given."""
    seen.setdefault(name, args[0])


def layout_of(model: nn.Module, inputs: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, object]]:
    """The input of each layer on the kernels, and a matrix of its shape that holds nothing."""
    seen: dict[str, torch.Tensor] = {}
    layers = on_kernels(model)
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: keep_input(seen, name, args))
        for name, layer in layers.items()
    ]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    return [(seen[name], pack(torch.zeros(layers[name].packed().shape), "blocks")) for name in layers]


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
                    layers = layout_of(model, inputs)
                    calls = {
                        "model": lambda model=model, inputs=inputs: model(**inputs),
                        "layout": lambda layers=layers: [sparse_linear(x, empty) for x, empty in layers],
                    }
                    seconds = cpu_seconds(calls, rounds=15 if batch * sequence <= 128 else 5)
                    chosen.undo()
                share = seconds["layout"] / seconds["model"]
                row = {"shape": shape, "zeros": zeros, "batch": batch, "sequence": sequence, "layers": len(layers)}
                found.append(row | {"model_ms": 1e3 * seconds["model"], "layout_share": share})
                print(
                    f"{shape} blocks {zeros:.0%}, {batch} x {sequence}: {len(layers)} layers on the kernels, "
                    f"{1e3 * seconds['model']:.1f} ms, layout {share:.1%}",
                    flush=True,
                )
    keep("layout", found)


if __name__ == "__main__":
    main()
