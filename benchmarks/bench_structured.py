"""What removed heads and neurons are worth in time: cut models against the dense one, in the same run.

Two shapes, one sentence of 128 tokens, one thread. Prints the ratio of FLOPs beside the ratio of CPU seconds.
"""

from __future__ import annotations

from functools import partial

import torch
from transformers import BertForSequenceClassification

import dsee
from common import SHAPES, config, cpu_seconds, keep
from dsee.measure.sample import sample_inputs

CUTS = {
    "dense": None,
    "25 % heads": (0.25, None),
    "25 % + 40 % neurons": (0.25, 0.4),
    "50 % + 50 % neurons": (0.5, 0.5),
}


def variant(shape: str, cut: tuple[float, float | None] | None) -> torch.nn.Module:
    torch.manual_seed(0)
    model = BertForSequenceClassification(config(shape)).eval()
    if cut is not None:
        heads, neurons = cut
        rules = [dsee.Heads(heads, score="random")] + ([dsee.Neurons(neurons, score="random")] if neurons else [])
        dsee.prune(model, *rules)
    return model


def main() -> None:
    figures = {}
    for shape in SHAPES:
        models = {name: variant(shape, cut) for name, cut in CUTS.items()}
        calls = {name: partial(model, **sample_inputs(model, 1, 128)) for name, model in models.items()}
        with torch.inference_mode():
            seconds = cpu_seconds(calls, rounds=15, warmup=3)
        operations = {name: dsee.flops(model, 1, 128).encoder for name, model in models.items()}
        figures[shape] = {
            name: {
                "cpu_ms": 1e3 * seconds[name],
                "speed_up": seconds["dense"] / seconds[name],
                "flop_ratio": operations["dense"] / operations[name],
            }
            for name in CUTS
        }
        print(f"\n{shape}, 1 x 128 tokens, one thread")
        for name, row in figures[shape].items():
            print(f"  {name:<22} {row['cpu_ms']:7.1f} ms   {row['speed_up']:.2f}x   (FLOPs {row['flop_ratio']:.2f}x)")
    keep("structured", figures)


if __name__ == "__main__":
    main()
