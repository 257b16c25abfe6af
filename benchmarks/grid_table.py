"""The results as Markdown: mean and spread over seeds, one row for each way to tune."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, fields, replace
from typing import Any

from grid_data import TASKS
from grid_model import Cell

Rows = list[tuple[Cell, dict[str, Any]]]
NAMES = {
    "qv": "query, value",
    "attention": "attention",
    "ffn": "feed-forward",
    "all": "all linears",
    "all+pooler": "all linears, pooler",
    "all+pooler+words": "all linears, pooler, words",
    "qv+pooler": "query, value, pooler",
}
#: Said in the first columns of the table, or in its heading.
SAID = ("task", "method", "seed", "targets", "r", "n_sparse", "lr", "epochs", "train_size")


def described(cell: Cell) -> str:
    """A way to tune in words: what is trained, and each setting that is not the usual one."""
    plain, own = asdict(Cell(cell.task)), asdict(cell)
    others = [f"{f.name} {own[f.name]}" for f in fields(Cell) if f.name not in SAID and own[f.name] != plain[f.name]]
    if cell.method in ("full", "head"):
        start = {"full": "full fine-tuning", "head": "pooler and classifier"}[cell.method]
    else:
        kind = {"lora": "LoRA", "dsee": "update"}[cell.method]
        sparse = f" N={cell.n_sparse}" if cell.method == "dsee" else ""
        start = f"{kind}, {NAMES[cell.targets]}, r={cell.r}{sparse}"
    return ", ".join([start, *others])


def _mean(values: list[float], digits: int = 1) -> str:
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _of(found: Rows, part: str, name: str, digits: int = 1) -> str:
    """One figure of the runs that have it; parts of the data that are younger than a run it has not."""
    values = [row[part].get(name, math.nan) for _, row in found if part in row]
    return _mean(values, digits) if values else ""


def _line(found: Rows, most: int, further: bool) -> str:
    cell, row = found[0]
    metric = TASKS[cell.task].metric
    share = row["trained"] / row["total"]
    seeds = len(found)
    cells = [
        described(cell),
        f"{cell.lr:.0e}".replace("e-0", "e-"),
        f"{share:.2%}",
        _of(found, "validation", metric),
        _of(found, "validation", "loss", 3),
        _of(found, "test", metric),
        _of(found, "test", "loss", 3),
        *([_of(found, "test", "f1")] if cell.task == "mrpc" else []),
        *([_of(found, "further", metric), _of(found, "further", "loss", 3)] if further else []),
        f"{seeds}" + " (fewer)" * (seeds < most),
        f"{statistics.mean(r['cpu_seconds'] for _, r in found):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def table(rows: Rows) -> str:
    """Return the Markdown of all results.

    Args:
        rows: cells and their stored rows.
    """
    blocks: dict[tuple[Any, ...], dict[str, Rows]] = {}
    for cell, row in rows:
        block = blocks.setdefault((cell.task, cell.train_size or 0, cell.epochs), {})
        block.setdefault(repr(replace(cell, seed=0)), []).append((cell, row))
    return "\n\n".join(_block(key, found) for key, found in sorted(blocks.items()))


def _block(key: tuple[Any, ...], ways: dict[str, Rows]) -> str:
    task, size, epochs = key
    metric = TASKS[task].metric
    most = max(len(found) for found in ways.values())
    sentences = f", {size:,} training sentences" if size else ""
    heads = ["way", "learning rate", "trained", f"validation {metric}", "loss", f"reported {metric}", "loss"]
    further = any("further" in row for found in ways.values() for _, row in found)
    heads += ["F1"] * (task == "mrpc") + [f"further {metric}", "loss"] * further + ["seeds", "CPU s"]
    ranked = sorted(ways.values(), key=lambda found: -statistics.mean(r["validation"][metric] for _, r in found))
    lines = [
        f"### {task}{sentences}, {epochs} {'epoch' if epochs == 1 else 'epochs'}",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + " --- |" * len(heads),
        *[_line(found, most, further) for found in ranked],
    ]
    return "\n".join(lines)
