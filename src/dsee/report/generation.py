"""The report of a model that writes: what its texts score, its perplexity, and what it costs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from dsee._version import __version__
from dsee.report.rows import STAGE
from dsee.report.write import data_notes, tuned_by
from dsee.tasks.generation import METRICS
from dsee.training.recipe import Recipe
from dsee.training.run import RunResult
from dsee.training.stage import write_whole

#: Names of the scores in tables, and digits behind the point.
TITLES = {
    "bleu": ("BLEU", 1),
    "nist": ("NIST", 2),
    "meteor": ("METEOR", 1),
    "rouge_l": ("ROUGE-L", 1),
    "cider": ("CIDEr", 2),
    "ter": ("TER (less is better)", 1),
}

_PAGE = """# Report

{table}
Measured on one thread with {batch} sequence(s) of {sequence} tokens: {hardware}.
Perplexity is of {tokens:.0f} held-out tokens, each weighing the same, the epoch chosen by the loss on {validation}
other examples; the speed-up compares CPU times. FLOPs are theoretical, in brackets the change of the layers' own.
{written}{kernels}
{tuned}Recovered and exported models: `model/` (`dsee.load`), {exports}.
{notes}"""


@dataclass(frozen=True)
class TextRow:
    """One variant. Every figure was measured or counted in the run it reports.

    Attributes:
        name: "dense", "pruned", "recovered", "ONNX fp32" or "ONNX int8".
        scores: metric -> figure; empty where nothing was written.
        loss: nats a token, on the test part.
        perplexity: its exponential.
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
    loss: float
    perplexity: float
    trainable_share: float | None
    flops: int
    encoder_flops: int
    p50_ms: float
    p95_ms: float
    cpu_ms: float
    megabytes: float
    memory_mb: float | None


def text_rows(result: RunResult) -> list[TextRow]:
    """Put a run's figures together, one row per variant.

    Args:
        result: what :func:`dsee.training.run` returned for a task of writing.
    """
    return [_row(result.stages, name) for name in result.variants]


def _row(stages: dict[str, dict[str, Any]], name: str) -> TextRow:
    stage, measured = stages[STAGE.get(name, "merge")], stages["measure"][name]
    test = stages["export"][name.removeprefix("ONNX ")]["test"] if name.startswith("ONNX") else stage["test"]
    trained = stages.get({"dense": "tune", "recovered": "recover"}.get(name, ""))
    times, memory = measured["latency"], measured["memory"]
    return TextRow(
        name=name,
        scores=stages.get(f"write-{name}", {}).get("scores", {}),
        loss=test["loss"],
        perplexity=test["perplexity"],
        trainable_share=trained["trainable"] / trained["parameters"] if trained else None,
        flops=stage["flops"],
        encoder_flops=stage["encoder_flops"],
        p50_ms=times["p50_ms"],
        p95_ms=times["p95_ms"],
        cpu_ms=times["cpu_ms"],
        megabytes=measured["bytes"] / 1e6,
        memory_mb=(memory["peak"] - memory["imports"]) / 1e6 if memory else None,
    )


def text_table(rows: list[TextRow]) -> tuple[list[str], list[list[str]]]:
    """Return the table's header and body.

    Args:
        rows: the variants, the baseline first.
    """
    base = rows[0]
    scored = [name for name in METRICS if name in base.scores]
    header = ["", *(TITLES[name][0] for name in scored), "perplexity", "trainable", "FLOPs"]
    header += ["latency p50 / p95", "speed-up", "MB", "memory"]
    body = []
    for row in rows:
        change = f" ({row.encoder_flops / base.encoder_flops - 1:+.0%})" if row is not base else ""
        found = [f"{row.scores[name]:.{TITLES[name][1]}f}" if name in row.scores else "-" for name in scored]
        body.append(
            [
                row.name,
                *found,
                f"{row.perplexity:.2f}",
                f"{row.trainable_share:.2%}" if row.trainable_share is not None else "-",
                f"{row.flops / 1e9:.2f} G{change}",
                f"{row.p50_ms:.1f} / {row.p95_ms:.1f} ms",
                f"{base.cpu_ms / row.cpu_ms:.2f}x",
                f"{row.megabytes:.1f}",
                f"{row.memory_mb:.0f} MB" if row.memory_mb is not None else "-",
            ]
        )
    return header, body


def write_text_report(result: RunResult, recipe: Recipe) -> list[TextRow]:
    """Write ``report.json`` and ``report.md`` and return the rows.

    Args:
        result: the run.
        recipe: its recipe.
    """
    rows = text_rows(result)
    figures = {
        "dsee": __version__,
        "recipe": recipe.model_dump(mode="json"),
        "hardware": result.hardware,
        "examples": result.sizes,
        "notes": result.notes,
        "rows": [asdict(row) for row in rows],
        "stages": result.stages,
    }
    write_whole(result.output / "report.json", json.dumps(figures, indent=2) + "\n")
    header, body = text_table(rows)
    lines = [header, ["---"] * len(header), *body]
    kernels = {name: row.get("kernels") for name, row in result.stages["measure"].items()}
    page = _PAGE.format(
        table="".join(f"| {' | '.join(line)} |\n" for line in lines),
        batch=recipe.measure.batch,
        sequence=recipe.measure.sequence,
        hardware=", ".join(f"{key} {value}" for key, value in result.hardware.items() if value),
        tokens=result.stages["tune"]["test"]["tokens"],
        validation=result.sizes["validation"],
        written=_written(result.stages.get("write-dense"), recipe) + _kept(result.stages),
        kernels="".join(f"Zeros in weights of {name}: {said}.\n" for name, said in kernels.items() if said),
        exports=", ".join(f"`onnx-{p}/`" for p in recipe.export.onnx) or "no ONNX",
        tuned=tuned_by(recipe),
        notes=data_notes(result),
    )
    write_whole(result.output / "report.md", page)
    return rows


def _written(stage: dict[str, Any] | None, recipe: Recipe) -> str:
    """How texts were written, and what they are not scored by and why."""
    if stage is None:
        return ""
    how = recipe.generation.decoding
    said = (
        f"Scores are of {stage['texts']} texts against {stage['references']} references: {how.beams} beam(s), length "
        f"penalty {how.length_penalty:g}, no {how.no_repeat_ngram}-gram twice, at most {how.max_new_tokens} tokens; "
        "the texts are in `stages/texts-*.jsonl`.\n"
    )
    return said + "".join(f"Not scored by {TITLES[name][0]}: {why}.\n" for name, why in stage["missing"].items())


def _kept(stages: dict[str, Any]) -> str:
    """How many texts exports write as the model does."""
    same = {name: stage["same"] for name, stage in stages.items() if name.startswith("write-") and "same" in stage}
    return "".join(
        f"{name.removeprefix('write-')} writes {share:.1%} of these texts as the model it was exported from.\n"
        for name, share in same.items()
    )
