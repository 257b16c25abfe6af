"""What ``dsee.optimize`` is worth without zeros: most on short inputs, where PyTorch's cost for each operation counts.

    python benchmarks/bench_short.py

Dense and cut encoders without any zeros, as they are and as ``dsee.optimize`` leaves them for one sentence of that
length: the whole encoder in one call of the kernels, where that is faster. One thread, all of a shape in bursts of five
calls in one process, medians of CPU seconds; ratios are over the dense model as it is.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from transformers.utils import logging

import dsee
from bench_structured import CUTS, cut_model
from common import SHAPES, in_turns, keep
from dsee.measure.sample import sample_inputs


def models_of(shape: str) -> dict[str, Any]:
    """Each cut twice; the second of them is to be optimized."""
    pairs = [(cut + suffix, amounts) for cut, amounts in CUTS.items() for suffix in ("", ", optimized")]
    return {name: cut_model(shape, amounts).eval() for name, amounts in pairs}


def measure(shape: str, lengths: list[int], rounds: int) -> list[dict[str, Any]]:
    """A row for each length."""
    models, rows = models_of(shape), []
    for length in lengths:
        inputs = sample_inputs(models["dense"], 1, length)
        chosen = {name: dsee.optimize(model, inputs) for name, model in models.items() if name.endswith("optimized")}
        with torch.inference_mode():
            seconds, _, least = in_turns({name: partial(model, **inputs) for name, model in models.items()}, rounds)
        row = {"shape": shape, "tokens": length, "dense_ms": 1e3 * seconds["dense"]}
        row |= {
            name: {
                "speed_up": seconds["dense"] / seconds[name],
                "least": least["dense"] / least[name],
                "one_call": bool(name in chosen and chosen[name].encoders),
            }
            for name in models
            if name != "dense"
        }
        rows.append(row)
        for choices in chosen.values():
            choices.undo()
        cells = [
            f"{name} {found['speed_up']:.2f} ({found['least']:.2f}){'*' * found['one_call']}"
            for name, found in row.items()
            if isinstance(found, dict)
        ]
        print(f"{shape} 1 x {length}, dense {row['dense_ms']:.1f} ms: {'  '.join(cells)}", flush=True)
    return rows


def main() -> None:
    """Print and keep the ratios; * marks an encoder in one call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["MiniLM-L6"], choices=list(SHAPES))
    parser.add_argument("--lengths", nargs="+", type=int, default=[1, 8, 16, 32, 64, 128, 384])
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    keep("short", [row for shape in given.shapes for row in measure(shape, given.lengths, given.rounds)])


if __name__ == "__main__":
    main()
