"""Folders timed against each other: one process, turn by turn, so that a busy moment of the machine hits them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dsee.errors import DseeError, InputError
from dsee.masks import masked_linears
from dsee.measure.latency import Latency, Rounds, rounds
from dsee.modes import torch_threads
from dsee.runtime.choices import Choices
from dsee.runtime.memory import PeakMemory, peak_memory
from dsee.runtime.opened import is_onnx, open_model, weight_bytes
from dsee.runtime.optimize import optimize


@dataclass(frozen=True)
class Contender:
    """One folder.

    Attributes:
        folder: where it lies.
        runtime: "torch" or "onnx".
        precision: of its weights, "float32" or "int8" for example.
        bytes: of its weights on disk.
        memory: peak memory of a fresh process that loads it and runs the first shape once; None if not wanted.
    """

    folder: Path
    runtime: str
    precision: str
    bytes: int
    memory: PeakMemory | None


@dataclass(frozen=True)
class Ratio:
    """How many times faster the first folder is than another: the other's time over the first one's.

    Attributes:
        median: of the ratios of all rounds.
        low: their lower quartile.
        high: their upper quartile.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timed:
    """What one shape of input took.

    Attributes:
        batch: sentences.
        sequence: tokens per sentence.
        times: name -> latency.
        speedups: name of every folder but the first -> how many times faster the first one is.
        kernels: name -> what :func:`dsee.optimize` chose for this shape, where it was asked.
        new_tokens: tokens written after each sentence, which the times are for; 0 for one pass over the sentences.
        first: name -> latency of the first of them alone; empty where nothing is written.
    """

    batch: int
    sequence: int
    times: dict[str, Latency]
    speedups: dict[str, Ratio]
    kernels: dict[str, str]
    new_tokens: int = 0
    first: dict[str, Latency] = field(default_factory=dict)

    def throughput(self, name: str) -> float:
        """Sentences a second, at the median latency.

        Args:
            name: the folder's name.
        """
        return 1e3 * self.batch / self.times[name].p50_ms

    def tokens_per_second(self, name: str) -> float:
        """New tokens a second of all sentences together, the first ones left out, at the median latencies.

        Args:
            name: the folder's name.
        """
        later = self.times[name].p50_ms - self.first[name].p50_ms
        return 1e3 * self.batch * (self.new_tokens - 1) / max(later, 1e-6)


@dataclass(frozen=True)
class Bench:
    """What :func:`bench` found.

    Attributes:
        contenders: name -> folder, the one to judge first.
        shapes: one entry per shape of input.
        threads: threads each of them had.
        rounds: timed rounds of each shape.
        clock: what the speed-ups compare: "cpu" seconds on one thread, else "wall" time.
    """

    contenders: dict[str, Contender]
    shapes: list[Timed]
    threads: int
    rounds: int
    clock: str


def bench(
    folders: dict[str, Path],
    *,
    shapes: list[tuple[int, int]],
    runs: int = 30,
    warmup: int = 3,
    threads: int = 1,
    memory: bool = True,
    kernels: bool = False,
    new_tokens: int = 0,
    progress: Callable[[], None] | None = None,
) -> Bench:
    """Measure folders against the first of them.

    Updates beside a base are merged first, as for deployment. On one thread the speed-ups compare CPU seconds round by
    round, which other jobs on the machine disturb least; on more threads they compare wall time.

    Args:
        folders: name -> artifact, ONNX folder or plain transformers folder; at least two.
        shapes: (sentences, tokens per sentence) to measure with.
        runs: rounds of each shape that count.
        warmup: rounds before.
        threads: threads for each.
        memory: measure peak memory too, which takes a fresh process for each folder.
        kernels: let :func:`dsee.optimize` put masked models on sparse kernels, for each shape anew.
        new_tokens: time writing so many tokens after each sentence, greedily, and the first alone; at least 2, or 0
            for one pass over the sentences.
        progress: called after each round and each process.

    Returns:
        All figures.

    Raises:
        InputError: fewer than two folders, no shape, one new token, or a folder whose model does not run on such
            input or does not write.
        ArtifactError: a folder is missing, damaged or holds no model.
    """
    if len(folders) < 2:
        raise InputError("bench: give at least two folders to compare.")
    if not shapes:
        raise InputError("bench: give at least one shape, batch and sequence.")
    if new_tokens < 0 or new_tokens == 1:
        raise InputError(f"bench: new_tokens={new_tokens} has to be at least 2; the first token is timed by itself.")
    clock = "cpu" if threads == 1 else "wall"
    how = {"runs": runs, "warmup": warmup, "progress": progress}
    timed, precisions = _timed(folders, shapes, new_tokens, clock, threads=threads, kernels=kernels, **how)
    contenders = {}
    for name, folder in folders.items():
        peak = peak_memory(folder, batch=shapes[0][0], sequence=shapes[0][1]) if memory else None
        runtime = "onnx" if is_onnx(folder) else "torch"
        contenders[name] = Contender(folder, runtime, precisions[name], weight_bytes(folder), peak)
        if progress and memory:
            progress()
    return Bench(contenders, timed, threads, runs, clock)


def _timed(
    folders: dict[str, Path],
    shapes: list[tuple[int, int]],
    new: int,
    clock: str,
    *,
    threads: int,
    kernels: bool,
    **how: Any,
) -> tuple[list[Timed], dict[str, str]]:
    """Times of every shape, and each folder's precision; the models are gone when it returns, for small machines."""
    models = {name: open_model(folder, threads=threads, merged=True) for name, folder in folders.items()}
    calls = [_calls(models, shape, new) for shape in shapes]
    timed = []
    for shape, variants in zip(shapes, calls, strict=True):
        with torch_threads(threads):
            chosen = {name: _optimized(model, shape) for name, model in models.items() if kernels and _masked(model)}
        found = rounds(variants, threads=threads, **how)
        times = {name: found.latency(name) for name in folders}
        summaries = {name: choices.summary for name, choices in chosen.items()}
        first = {name: found.latency(_first(name)) for name in folders if new}
        timed.append(Timed(*shape, times, _speedups(found, clock, list(folders)), summaries, new, first))
        for choices in chosen.values():
            choices.undo()
    return timed, {name: model.precision for name, model in models.items()}


def _first(name: str) -> str:
    """What the first token of a folder is called among the calls: no folder has such a name."""
    return f"{name}/first token"


def _calls(models: dict[str, Any], shape: tuple[int, int], new: int) -> dict[str, Callable[[], Any]]:
    found = {name: _call(model, shape, new) for name, model in models.items()}
    return found | {_first(name): _call(model, shape, 1) for name, model in models.items() if new}


def _masked(model: Any) -> bool:
    return hasattr(model, "model") and bool(masked_linears(model.model))


def _optimized(model: Any, shape: tuple[int, int]) -> Choices:
    return optimize(model.model, model.sample(*shape))


def _call(model: Any, shape: tuple[int, int], new: int) -> Callable[[], Any]:
    """A call that runs the model once; tried here, because what fails has to fail before the first minute is spent."""
    if new and not model.generates:
        raise InputError(f"bench: {model.folder} holds a model that writes nothing. Leave --new-tokens out.")
    call = partial(model.go_on, model.sample(*shape), new) if new else partial(model.run, model.sample(*shape))
    try:
        call()
    except DseeError:
        raise
    except Exception as error:
        # torch, transformers and onnxruntime raise anything
        name = type(getattr(model, "model", model)).__name__
        batch, sequence = shape
        raise InputError(
            f"bench: {model.folder} ({name}) does not run on {batch} x {sequence} token ids alone "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'})."
        ) from error
    return call


def _speedups(found: Rounds, clock: str, names: list[str]) -> dict[str, Ratio]:
    times = found.cpu if clock == "cpu" else found.wall
    first, *others = names
    ratios = {name: np.divide(times[name], np.maximum(times[first], 1e-6)) for name in others}
    return {name: Ratio(*(float(np.percentile(each, q)) for q in (50, 25, 75))) for name, each in ratios.items()}
