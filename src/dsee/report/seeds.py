"""Means over several seeds of one recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from dsee._version import __version__
from dsee.report.generation import TITLES, TextRow
from dsee.report.rows import Row
from dsee.tasks.metrics import METRICS
from dsee.training.recipe import Recipe
from dsee.training.stage import write_whole

AnyRow = Row | TextRow

#: Columns beside the scores: field of a row, title, factor, digits, unit.
_COLUMNS = (
    ("trainable_share", "trainable", 100.0, 2, " %"),
    ("flops", "GFLOPs", 1e-9, 2, ""),
    ("p50_ms", "latency p50", 1.0, 1, " ms"),
    ("megabytes", "MB", 1.0, 1, ""),
)


def summarise(found: Mapping[int, Sequence[AnyRow]]) -> list[dict[str, Any]]:
    """Return each variant's figures over the seeds.

    Args:
        found: seed -> the rows of its report.

    Returns:
        For each row its "name", and for each figure "mean", "std" (of a sample: over n - 1; None of one seed) and
        "values" in the order of the seeds. Scores are under "scores".
    """
    seeds = list(found)
    result = []
    for position, first in enumerate(found[seeds[0]]):
        rows = [asdict(found[seed][position]) for seed in seeds]
        scores = {name: _over([row["scores"][name] for row in rows]) for name in first.scores}
        if "perplexity" in rows[0]:
            scores["perplexity"] = _over([row["perplexity"] for row in rows])
        entry: dict[str, Any] = {"name": first.name, "scores": scores}
        for field, *_ in _COLUMNS:
            values = [row[field] for row in rows]
            entry[field] = None if None in values else _over(values)
        result.append(entry)
    return result


def _over(values: list[float]) -> dict[str, Any]:
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else None, "values": values}


def seeds_table(summary: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the table's header and body: mean ± standard deviation.

    Args:
        summary: what :func:`summarise` returned.
    """
    scored = list(summary[0]["scores"])
    header = ["", *(_title(name) for name in scored), *(title for _, title, *_ in _COLUMNS)]
    body = []
    for entry in summary:
        scores = [_shown(entry["scores"].get(name), 1.0, *_form(name)) for name in scored]
        rest = [_shown(entry[field], factor, digits, unit) for field, _, factor, digits, unit in _COLUMNS]
        body.append([entry["name"], *scores, *rest])
    return header, body


def _title(name: str) -> str:
    return METRICS[name].title if name in METRICS else TITLES[name][0]


def _form(name: str) -> tuple[int, str]:
    """Digits and unit of a score."""
    if name in METRICS:
        return METRICS[name].digits, f" {METRICS[name].unit}" if METRICS[name].unit else ""
    return TITLES[name][1], ""


def _shown(figure: dict[str, Any] | None, factor: float, digits: int, unit: str) -> str:
    if figure is None:
        return "-"
    spread = "" if figure["std"] is None else f" ± {figure['std'] * factor:.{digits}f}"
    return f"{figure['mean'] * factor:.{digits}f}{spread}{unit}"


def write_seeds(folder: Path, found: Mapping[int, Sequence[AnyRow]], recipe: Recipe) -> list[dict[str, Any]]:
    """Write ``seeds.json`` and ``seeds.md`` and return the summary.

    Args:
        folder: where the seeds' folders are.
        found: seed -> the rows of its report.
        recipe: what was run, whatever its own seed.
    """
    summary, seeds = summarise(found), list(found)
    content = {
        "dsee": __version__,
        "seeds": seeds,
        "recipe": recipe.model_dump(mode="json", exclude={"seed"}),
        "rows": summary,
    }
    write_whole(folder / "seeds.json", json.dumps(content, indent=2) + "\n")
    header, body = seeds_table(summary)
    lines = [header, ["---"] * len(header), *body]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    said = ", ".join(map(str, seeds))
    page = f"# {len(seeds)} seeds\n\n{table}\nMean ± standard deviation (n - 1) over the seeds {said}; the reports of "
    page += "each are in `seed-N/`.\nThe seed decides the parts cut off the training file, the task head, the support "
    page += "and the order of the batches.\n"
    write_whole(folder / "seeds.md", page)
    return summary
