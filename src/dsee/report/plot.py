"""The task's figure against latency, one point per variant."""

from __future__ import annotations

from pathlib import Path

from dsee.report.rows import Row
from dsee.tasks.metrics import METRICS


def plot(rows: list[Row], path: Path) -> bool:
    """Draw the picture.

    Args:
        rows: the variants.
        path: the PNG file.

    Returns:
        False if matplotlib is not installed; then nothing is written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for number, row in enumerate(rows):
        axes.scatter(row.cpu_ms, row.score, s=2.0 * row.megabytes + 20, alpha=0.75)
        axes.annotate(
            f"{row.name}, {row.megabytes:.0f} MB",
            (row.cpu_ms, row.score),
            textcoords="offset points",
            # neighbours take turns, so that labels of close points do not cover each other
            xytext=(0, 12 if number % 2 == 0 else -18),
            ha="center",
            fontsize=8,
        )
    axes.margins(0.2)
    axes.set_xlabel("CPU time of one pass, one thread (ms); area: MB of weights")
    metric = METRICS[rows[0].metric]
    axes.set_ylabel(f"test {metric.title}" + (f" ({metric.unit})" if metric.unit else ""))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=144, metadata={"Software": None})
    return True
