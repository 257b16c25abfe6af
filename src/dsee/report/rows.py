"""The rows of the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dsee.training.run import RunResult

#: Stage whose test figures a row shows.
STAGE = {"dense": "tune", "pruned": "prune", "recovered": "merge"}


@dataclass(frozen=True)
class Row:
    """One variant. Every figure was measured or counted in the run it reports.

    Attributes:
        name: "dense", "pruned", "recovered", "ONNX fp32" or "ONNX int8".
        scores: figures of the task on the test part, the one that leads the report first; see
            :data:`dsee.tasks.metrics.METRICS`.
        trainable_share: share of the parameters trained to get there; None where nothing was.
        flops: of one pass of the measured shape.
        encoder_flops: the transformer layers' part of it.
        p50_ms: median latency.
        p95_ms: 95th percentile.
        cpu_ms: median CPU time, for ratios.
        megabytes: of the weights.
        memory_mb: peak memory of the process beyond its imports; None if not measured.
    """

    name: str
    scores: dict[str, float]
    trainable_share: float | None
    flops: int
    encoder_flops: int
    p50_ms: float
    p95_ms: float
    cpu_ms: float
    megabytes: float
    memory_mb: float | None

    @property
    def metric(self) -> str:
        """Name of the figure that leads the report."""
        return next(iter(self.scores))

    @property
    def score(self) -> float:
        """The figure that leads the report."""
        return self.scores[self.metric]


def rows(result: RunResult) -> list[Row]:
    """Put a run's figures together, one row per variant.

    Args:
        result: what :func:`dsee.training.run` returned.
    """
    stages = result.stages
    found = []
    for name in result.variants:
        stage = stages[STAGE.get(name, "merge")]
        test = stages["export"][name.removeprefix("ONNX ")]["test"] if name.startswith("ONNX") else stage["test"]
        scores = {metric: test[metric] for metric in result.metrics}
        found.append(_row(name, scores, stage, _share(stages, name), stages["measure"][name]))
    return found


def _share(stages: dict[str, dict[str, Any]], name: str) -> float | None:
    """Only tuning and recovering train anything."""
    stage = stages.get({"dense": "tune", "recovered": "recover"}.get(name, ""))
    return stage["trainable"] / stage["parameters"] if stage else None


def _row(
    name: str, scores: dict[str, float], stage: dict[str, Any], share: float | None, measured: dict[str, Any]
) -> Row:
    times, memory = measured["latency"], measured["memory"]
    return Row(
        name=name,
        scores=scores,
        trainable_share=share,
        flops=stage["flops"],
        encoder_flops=stage["encoder_flops"],
        p50_ms=times["p50_ms"],
        p95_ms=times["p95_ms"],
        cpu_ms=times["cpu_ms"],
        megabytes=measured["bytes"] / 1e6,
        memory_mb=(memory["peak"] - memory["imports"]) / 1e6 if memory else None,
    )
