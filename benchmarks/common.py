"""What the benchmarks share: shapes, interleaved CPU seconds, JSON."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import BertConfig

SHAPES = {
    "MiniLM-L6": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "BERT-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
RESULTS = Path(__file__).parent / "results"


def config(shape: str, **changes: object) -> BertConfig:
    """Configuration of one shape; the weights will be random, which makes no difference to time."""
    return BertConfig(**(SHAPES[shape] | {"num_labels": 2} | changes))


def cpu_seconds(calls: dict[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, float]:
    """Median CPU seconds of each call, one thread, A B C A B C ... in one process."""
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(warmup + rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if round_number >= warmup:
                found[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in found.items()}


def in_turns(calls: dict[str, Callable[[], object]], rounds: int, burst: int = 5) -> tuple[dict[str, float], ...]:
    """Median CPU seconds of each call, one thread, A A A A A B B B B B ... in one process.

    Args:
        calls: what to time.
        rounds: bursts of each, after one that does not count.
        burst: calls in a row.

    Returns:
        Of the calls that follow one of the same kind, as in a process that serves one model; of each burst's first,
        whose weights the calls before it have driven out of the caches; and the least of all, when nobody disturbed.
    """
    torch.set_num_threads(1)
    warm: dict[str, list[float]] = {name: [] for name in calls}
    cold: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(1 + rounds):
        for name, call in calls.items():
            for i in range(burst):
                start = time.process_time()
                call()
                if round_number:
                    (warm if i else cold)[name].append(time.process_time() - start)
    medians = [{name: statistics.median(times) for name, times in found.items()} for found in (warm, cold)]
    return (*medians, {name: min(warm[name] + cold[name]) for name in calls})


def keep(name: str, figures: object) -> None:
    """Write the figures as JSON."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
