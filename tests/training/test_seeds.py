"""Means over seeds: the figures, and how they read."""

import pytest

from dsee.report.rows import Row
from dsee.report.seeds import seeds_table, summarise


def row(name, accuracy, flops=2_000_000_000, share=0.005):
    figures = {"encoder_flops": 1, "p50_ms": 3.0, "p95_ms": 4.0, "cpu_ms": 3.0, "megabytes": 10.0, "memory_mb": None}
    return Row(name=name, scores={"accuracy": accuracy}, trainable_share=share, flops=flops, **figures)


def test_mean_and_deviation_of_a_sample():
    found = {4: [row("dense", 80.0), row("pruned", 70.0, share=None)], 5: [row("dense", 82.0), row("pruned", 76.0)]}
    found[5][1] = row("pruned", 76.0, flops=1_000_000_000, share=None)
    dense, pruned = summarise(found)
    assert dense["scores"]["accuracy"] == {"mean": 81.0, "std": pytest.approx(2**0.5), "values": [80.0, 82.0]}
    assert pruned["flops"]["mean"] == 1.5e9
    assert pruned["trainable_share"] is None
    header, body = seeds_table([dense, pruned])
    assert header == ["", "accuracy", "trainable", "GFLOPs", "latency p50", "MB"]
    assert body[0][:3] == ["dense", "81.0 ± 1.4 %", "0.50 ± 0.00 %"]
    assert body[1] == ["pruned", "73.0 ± 4.2 %", "-", "1.50 ± 0.71", "3.0 ± 0.0 ms", "10.0 ± 0.0"]


def test_one_seed_has_no_deviation():
    (dense,) = summarise({0: [row("dense", 80.0)]})
    assert dense["scores"]["accuracy"]["std"] is None
    assert seeds_table([dense])[1][0][1] == "80.0 %"
