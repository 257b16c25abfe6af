"""``report.json``, ``report.md`` and ``report.png`` in the run's folder."""

from __future__ import annotations

import json
from dataclasses import asdict

from dsee._version import __version__
from dsee.report.plot import plot
from dsee.report.rows import Row, rows
from dsee.report.table import markdown
from dsee.training.recipe import Recipe
from dsee.training.run import RunResult
from dsee.training.stage import write_whole

_PAGE = """# Report

{table}
Measured on one thread with {batch} sentence(s) of {sequence} tokens: {hardware}.
Accuracy is of {test} held-out sentences, the epoch chosen on {validation} others; the speed-up compares CPU times.
FLOPs are theoretical, in brackets the change of the encoder's. Memory is the peak beyond the imports.
{kernels}
{picture}
Recovered and exported models: `model/` (`dsee.load`), {exports}.
"""


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
        test=sizes["test"],
        validation=sizes["validation"],
        kernels="".join(
            f"Zeros in weights of {name}: {said}.\n"
            for name, row in result.stages["measure"].items()
            if (said := row.get("kernels"))
        ),
        picture="![accuracy against latency](report.png)\n" if drawn else "",
        exports=", ".join(f"`onnx-{p}/`" for p in recipe.export.onnx) or "no ONNX",
    )
    write_whole(result.output / "report.md", page)
    return table
