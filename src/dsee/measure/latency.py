"""Time of one forward pass: percentiles of wall time, and CPU seconds for ratios on a shared machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dsee.errors import InputError
from dsee.measure.sample import sample_inputs
from dsee.modes import evaluating, torch_threads


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call.

    Attributes:
        p50_ms: median wall time.
        p95_ms: 95th percentile of wall time.
        cpu_ms: median CPU time of the process, which another job on the machine disturbs less.
        runs: calls timed.
        threads: threads torch was allowed.
    """

    p50_ms: float
    p95_ms: float
    cpu_ms: float
    runs: int
    threads: int


@dataclass(frozen=True)
class Rounds:
    """Milliseconds of every call of every variant, in the order they were made.

    Attributes:
        wall: name -> wall time of each round.
        cpu: name -> CPU time of the process in each round.
        threads: threads torch was allowed.
    """

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]
    threads: int

    def latency(self, name: str) -> Latency:
        """Sum up the rounds of one variant.

        Args:
            name: the variant.
        """
        wall = self.wall[name]
        return Latency(
            p50_ms=float(np.percentile(wall, 50)),
            p95_ms=float(np.percentile(wall, 95)),
            cpu_ms=float(np.median(self.cpu[name])),
            runs=len(wall),
            threads=self.threads,
        )


def interleaved(
    calls: dict[str, Callable[[], Any]], *, runs: int = 30, warmup: int = 3, threads: int = 1
) -> dict[str, Latency]:
    """Time several variants against each other: A B C A B C ..., so that a busy moment hits them all.

    Args:
        calls: name -> a call that does the work once.
        runs: rounds that count.
        warmup: rounds before.
        threads: threads for torch; other runtimes have to be set up with as many by the caller.

    Returns:
        name -> times.

    Raises:
        InputError: no run asked for.
    """
    found = rounds(calls, runs=runs, warmup=warmup, threads=threads)
    return {name: found.latency(name) for name in calls}


def rounds(
    calls: dict[str, Callable[[], Any]],
    *,
    runs: int = 30,
    warmup: int = 3,
    threads: int = 1,
    progress: Callable[[], None] | None = None,
) -> Rounds:
    """As :func:`interleaved`, but return every time, so that variants can be compared round by round.

    Args:
        calls: name -> a call that does the work once.
        runs: rounds that count.
        warmup: rounds before.
        threads: threads for torch; other runtimes have to be set up with as many by the caller.
        progress: called after each round.

    Raises:
        InputError: no run asked for.
    """
    if runs < 1 or warmup < 0 or threads < 1:
        raise InputError(
            f"latency: runs={runs} and threads={threads} have to be at least 1, warmup={warmup} at least 0."
        )
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    with torch_threads(threads), torch.inference_mode():
        for round_number in range(warmup + runs):
            for name, call in calls.items():
                wall_start, cpu_start = time.perf_counter(), time.process_time()
                call()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if round_number >= warmup:
                    wall[name].append(1e3 * (time.perf_counter() - wall_start))
                    cpu[name].append(1e3 * (time.process_time() - cpu_start))
            if progress:
                progress()
    return Rounds(wall, cpu, threads)


def latency(
    model: Any, *, batch: int = 1, sequence: int = 128, runs: int = 30, warmup: int = 3, threads: int = 1
) -> Latency:
    """Time a model's forward pass on random tokens, in eval mode.

    Args:
        model: a transformers model, with or without PEFT around it.
        batch: sentences.
        sequence: tokens per sentence.
        runs: calls that count.
        warmup: calls before.
        threads: threads for torch.
    """
    inputs = sample_inputs(model, batch, sequence)
    with evaluating(model):
        return interleaved({"model": lambda: model(**inputs)}, runs=runs, warmup=warmup, threads=threads)["model"]
