"""What the kernels' layout costs in a whole model: activations into panels and results back out of them.

    python benchmarks/bench_layout.py

The kernels are compiled a second time without the code that moves activations between the model's order and their own.
What that library computes is worthless, and the time it takes is that of all the rest: so the layout's share is what a
model takes more with the real one. Both in bursts of two calls in one process, CPU seconds on one thread, by medians
and, since neighbours on a machine disturb by more than the share, by least times; denormal numbers flushed so that
worthless values cost no extra time.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import BertForSequenceClassification

import dsee
from bench_kernels import masked
from common import SHAPES, config, in_turns, keep
from dsee.kernels.compile import compile_kernels
from dsee.kernels.library import Library, library
from dsee.measure.sample import sample_inputs

BATCHES = [(1, 96), (1, 128), (8, 128), (2, 384)]
ZEROS = (0.5, 0.7, 0.8)


def without_layout(folder: Path) -> Library:
    """The kernels, compiled so that they leave their activations where they are."""
    return Library(compile_kernels(folder / "without_layout.so", ("-DDSEE_LAYOUT=0",)), "")


def with_kernels(model: nn.Module, inputs: dict[str, torch.Tensor], kernels: ctypes.CDLL) -> Callable[[], object]:
    """A call of the model in which the library in use calls these kernels."""
    used = library()
    assert used is not None

    def call() -> object:
        used._loaded, used._linear = kernels, kernels.dsee_linear
        return model(**inputs)

    return call


def main() -> None:
    """Print and keep the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zeros", nargs="+", type=float, default=ZEROS, help="shares of zeros")
    wanted = parser.parse_args().zeros
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    used = library()
    if used is None:
        raise SystemExit("there are no kernels here")
    real, found = used._loaded, []
    with tempfile.TemporaryDirectory() as folder:
        empty = without_layout(Path(folder))._loaded
        for shape in SHAPES:
            torch.manual_seed(0)
            dense = BertForSequenceClassification(config(shape)).eval()
            for zeros in wanted:
                model = masked(dense, "blocks", zeros)
                for batch, sequence in BATCHES:
                    if batch * sequence > 768 and shape != "MiniLM-L6":
                        continue
                    inputs = sample_inputs(model, batch, sequence)
                    with torch.inference_mode():
                        chosen = dsee.optimize(model, sample_inputs(model, 1, sequence))
                        calls = {
                            "model": with_kernels(model, inputs, real),
                            "rest": with_kernels(model, inputs, empty),
                        }
                        seconds, _, least = in_turns(calls, rounds=40 if batch * sequence <= 128 else 10, burst=2)
                        used._loaded, used._linear = real, real.dsee_linear
                        chosen.undo()
                    share, undisturbed = (1 - times["rest"] / times["model"] for times in (seconds, least))
                    row = {"shape": shape, "zeros": zeros, "batch": batch, "sequence": sequence}
                    row |= {"encoders": chosen.encoders, "attentions": chosen.attentions, "pairs": chosen.pairs}
                    found.append(
                        row | {"model_ms": 1e3 * seconds["model"], "layout_share": share, "least": undisturbed}
                    )
                    print(
                        f"{shape} blocks {zeros:.0%}, {batch} x {sequence}: "
                        + ("whole encoder" if chosen.encoders else f"{chosen.attentions} attentions")
                        + f" in one call, {1e3 * seconds['model']:.1f} ms, "
                        f"layout {share:.1%}, by least times {undisturbed:.1%}",
                        flush=True,
                    )
    keep("layout", found)


if __name__ == "__main__":
    main()
