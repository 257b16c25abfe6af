"""What ``dsee bench`` found: a table, a sentence for each comparison, and plain data for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dsee._version import __version__
from dsee.measure.hardware import hardware
from dsee.runtime.bench import Bench, Timed

_SIZES = ["weights MB", "memory MB"]
HEADER = ["", "runs on", "p50 / p95 ms", "CPU ms", "sentences/s", *_SIZES]
#: Where tokens are written.
HEADER_WRITING = ["", "runs on", "p50 / p95 ms", "CPU ms", "first token ms", "new tokens/s", *_SIZES]


def bench_header(timed: Timed) -> list[str]:
    """Return the header of the table of one shape.

    Args:
        timed: its figures.
    """
    return HEADER_WRITING if timed.new_tokens else HEADER


def bench_cells(found: Bench, timed: Timed) -> list[list[str]]:
    """Return the body of the table of one shape.

    Args:
        found: all figures.
        timed: those of the shape.
    """
    body = []
    for name, contender in found.contenders.items():
        times = timed.times[name]
        body.append(
            [
                name,
                f"{contender.runtime} {contender.precision}",
                f"{times.p50_ms:.2f} / {times.p95_ms:.2f}",
                f"{times.cpu_ms:.2f}",
                *_rates(timed, name),
                f"{contender.bytes / 1e6:.1f}",
                f"{contender.memory.model / 1e6:.0f}" if contender.memory else "-",
            ]
        )
    return body


def _rates(timed: Timed, name: str) -> list[str]:
    if timed.new_tokens:
        return [f"{timed.first[name].p50_ms:.2f}", f"{timed.tokens_per_second(name):.1f}"]
    return [f"{timed.throughput(name):.1f}"]


def bench_sentences(found: Bench, timed: Timed) -> list[str]:
    """Say how the first folder compares with each other one.

    Args:
        found: all figures.
        timed: those of one shape.
    """
    (first, judged), *others = found.contenders.items()
    lines = []
    for name, other in others:
        ratio = timed.speedups[name]
        line = f"{first} is {ratio.median:.2f}x as fast as {name} (quartiles {ratio.low:.2f} to {ratio.high:.2f})"
        line += f", with {_share(judged.bytes, other.bytes)} of its bytes"
        if judged.memory and other.memory:
            line += f" and {_share(judged.memory.model, other.memory.model)} of its memory"
        lines.append(line)
    return [*lines, *(f"{name}: {summary}" for name, summary in timed.kernels.items())]


def bench_data(found: Bench) -> dict[str, Any]:
    """Return all figures as plain data.

    Args:
        found: the figures.
    """
    first = next(iter(found.contenders))
    return {
        "dsee": __version__,
        "hardware": hardware(),
        "threads": found.threads,
        "rounds": found.rounds,
        "speedup_of": first,
        "clock": found.clock,
        "folders": {
            name: {
                "folder": str(each.folder),
                "runtime": each.runtime,
                "precision": each.precision,
                "bytes": each.bytes,
                "memory": asdict(each.memory) | {"model": each.memory.model} if each.memory else None,
            }
            for name, each in found.contenders.items()
        },
        "shapes": [
            {
                "batch": timed.batch,
                "sequence": timed.sequence,
                "times": {
                    name: asdict(times) | {"sentences_per_s": timed.throughput(name)}
                    for name, times in timed.times.items()
                },
                **_writing_data(timed),
                "speedups": {name: asdict(ratio) for name, ratio in timed.speedups.items()},
                "kernels": timed.kernels,
            }
            for timed in found.shapes
        ],
    }


def _writing_data(timed: Timed) -> dict[str, Any]:
    """What there is to say of tokens that were written; nothing where none were."""
    if not timed.new_tokens:
        return {}
    rates = {name: timed.tokens_per_second(name) for name in timed.first}
    first = {name: asdict(latency) for name, latency in timed.first.items()}
    return {"new_tokens": timed.new_tokens, "first_token": first, "tokens_per_s": rates}


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "-"
