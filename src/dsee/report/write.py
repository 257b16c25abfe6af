"""``report.json``, ``report.md`` and ``report.png`` in the run's folder."""

from __future__ import annotations

import json
from dataclasses import asdict

from dsee._version import __version__
from dsee.report.plot import plot
from dsee.report.rows import Row, rows
from dsee.report.table import markdown
from dsee.tasks.metrics import METRICS
from dsee.training.method_keys import TITLES
from dsee.training.recipe import Recipe
from dsee.training.run import RunResult
from dsee.training.stage import write_whole

_PAGE = """# Report

{table}
Measured on one thread with {batch} sentence(s) of {sequence} tokens: {hardware}.
{scores} of {test} held-out sentences, the epoch chosen on {validation} others; the speed-up compares CPU times.
FLOPs are theoretical, in brackets the change of the encoder's. Memory is the peak beyond the imports.
{kernels}
{picture}
{tuned}Recovered and exported models: `model/` (`dsee.load`), {exports}.
{notes}"""


def write_report(result: RunResult, recipe: Recipe, sizes: dict[str, int]) -> list[Row]:
    """Write the report and return its rows.

    Args:
        result: the run.
        recipe: its recipe.
        sizes: sentences of each part, by name.
    """
    table = rows(result)
    drawn = plot(table, result.output / "report.png")
    figures = {
        "dsee": __version__,
        "recipe": recipe.model_dump(mode="json"),
        "hardware": result.hardware,
        "sentences": sizes,
        "metrics": list(result.metrics),
        "notes": result.notes,
        "rows": [asdict(row) for row in table],
        "stages": result.stages,
    }
    write_whole(result.output / "report.json", json.dumps(figures, indent=2) + "\n")
    hardware = ", ".join(f"{key} {value}" for key, value in result.hardware.items() if value)
    page = _PAGE.format(
        table=markdown(table),
        batch=recipe.measure.batch,
        sequence=recipe.measure.sequence,
        hardware=hardware,
        scores=_are(result.metrics),
        test=sizes["test"],
        validation=sizes["validation"],
        kernels="".join(
            f"Zeros in weights of {name}: {said}.\n"
            for name, row in result.stages["measure"].items()
            if (said := row.get("kernels"))
        ),
        picture="![the task's figure against latency](report.png)\n" if drawn else "",
        notes=data_notes(result),
        tuned=tuned_by(recipe),
        exports=", ".join(f"`onnx-{p}/`" for p in recipe.export.onnx) or "no ONNX",
    )
    write_whole(result.output / "report.md", page)
    return table


def _are(metrics: tuple[str, ...]) -> str:
    """The beginning of a sentence about the figures."""
    titles = [METRICS[name].title for name in metrics]
    said = " and ".join([", ".join(titles[:-1]), titles[-1]]) if len(titles) > 1 else titles[0]
    return f"{said[0].upper()}{said[1:]} {'are' if len(titles) > 1 else 'is'}"


def tuned_by(recipe: Recipe) -> str:
    """Return the line of a report that says how a baseline was tuned; nothing for the update.

    Args:
        recipe: the recipe.
    """
    named = f"Baseline `{recipe.baseline}`. " if recipe.baseline else ""
    how = "" if recipe.method == "dsee" else f"Tuned by {TITLES[recipe.method]}."
    return f"{named}{how}".strip() + "\n" if named or how else ""


def data_notes(result: RunResult) -> str:
    """What there is to say of the data and of files of predictions.

    Args:
        result: the run.
    """
    lines = list(result.notes)
    if result.predictions:
        files = ", ".join(f"`glue/{path.name}`" for path in result.predictions)
        lines.append(f"predictions for GLUE's server: {files}")
    # a line that starts with spaces is about the one above
    text = "".join(f"  - {line.strip()}\n" if line.startswith(" ") else f"- {line}\n" for line in lines)
    return f"\n{text}" if text else ""
