"""The pruning grid's results as Markdown: mean and spread over seeds, one row for each way to prune."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

from grid_data import TASKS
from prune_cells import PruneCell


def described(cell: PruneCell) -> str:
    """What is taken away, in words."""
    words = []
    if cell.cut.startswith("flops"):
        words.append(f"budget: {float(cell.cut.split()[1]):.0%} of the encoder's FLOPs")
    elif cell.cut:
        heads, neurons = cell.cut.split("/")
        words.append(f"{heads} % of heads, {neurons} % of neurons")
    if cell.mask:
        pattern = {"weights": "single weights", "blocks": "4x1 blocks", "4x4": "4x4 blocks", "2:4": "2:4"}[cell.mask]
        words.append(f"{pattern} {cell.ratio:.0%}")
    if cell.gradual:
        words.append(f"{cell.gradual} while recovering" + (", weights may return" if cell.regrow else ""))
    if cell.steps > 1:
        words.append(f"in {cell.steps} steps")
    if cell.masked:
        words.append("update under the mask")
    return ", ".join(words)


def _mean(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def table(rows: list[dict[str, Any]]) -> str:
    """Return the Markdown of all results.

    Args:
        rows: the stored rows.
    """
    found: dict[str, dict[str, list[tuple[PruneCell, dict[str, Any]]]]] = {}
    for row in rows:
        cell = PruneCell(**row["cell"])
        group = found.setdefault(cell.task, {})
        group.setdefault(repr(replace(cell, seed=0)), []).append((cell, row))
    return "\n\n".join(_block(task, list(ways.values())) for task, ways in found.items())


def _block(task: str, ways: list[list[tuple[PruneCell, dict[str, Any]]]]) -> str:
    heads = ["pruned", "score", "teacher", "epochs", "FLOPs left", "unpruned", "raw", "recovered", "change"]
    heads += ["merged", "as int8", "seeds"]
    lines = [f"### {task}, {TASKS[task].metric}", "", "| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    order = sorted(ways, key=lambda way: (described(way[0][0]), -statistics.mean(r["recovered"] for _, r in way)))
    for way in order:
        cell, found = way[0][0], [row for _, row in way]
        left = statistics.mean(r["effective_flops" if cell.mask else "encoder_flops"] for r in found)
        texts = [
            described(cell),
            cell.score,
            f"T {cell.temperature:g}, alpha {cell.alpha:g}" if cell.distill else "no",
            str(cell.epochs),
            f"{left:.0%}" + (" (effective)" if cell.mask else ""),
            *[_mean([r[key] for r in found]) for key in ("unpruned", "raw", "recovered")],
            _mean([r["recovered"] - r["unpruned"] for r in found]),
            *[_mean([r[key] for r in found if key in r]) for key in ("merged", "recovered_int8")],
            str(len(found)),
        ]
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)
