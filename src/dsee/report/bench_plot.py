"""The picture of ``dsee bench``: latency of each folder, shape by shape."""

from __future__ import annotations

from pathlib import Path

from dsee.errors import MissingExtraError
from dsee.runtime.bench import Bench


def require_plot() -> None:
    """Fail early if no picture can be drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401 - only asked for
    except ImportError as error:
        raise MissingExtraError("Drawing a plot", "plot") from error


def plot_bench(found: Bench, path: Path) -> None:
    """Draw bars at the median latency with a line up to the 95th percentile, and each folder's bytes in its label.

    Args:
        found: the figures.
        path: the picture; its suffix says the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_plot()
    from matplotlib.figure import Figure

    count = len(found.contenders)
    figure = Figure(figsize=(max(4.8, 2.6 * len(found.shapes)), 1.2 + 0.4 * count), layout="constrained")
    grid = figure.subplots(1, len(found.shapes), sharey=True, squeeze=False)[0]
    names = [f"{name} ({each.bytes / 1e6:.0f} MB)" for name, each in found.contenders.items()]
    for axes, timed in zip(grid, found.shapes, strict=True):
        middle = [timed.times[name].p50_ms for name in found.contenders]
        above = [max(0.0, timed.times[name].p95_ms - timed.times[name].p50_ms) for name in found.contenders]
        axes.barh(names, middle, xerr=[[0.0] * count, above], color=["C0"] + ["C7"] * (count - 1), capsize=3)
        axes.set_title(f"{timed.batch} x {timed.sequence} tokens", fontsize=9)
        axes.set_xlabel("ms, p50 to p95")
        axes.grid(axis="x", alpha=0.3)
    grid[0].invert_yaxis()
    figure.savefig(path, dpi=144, metadata={"Software": None} if path.suffix == ".png" else None)
