"""The results of nlg.py as Markdown."""

from __future__ import annotations

from typing import Any

SCORES = {"bleu": 1, "nist": 2, "meteor": 1, "rouge_l": 1, "cider": 2, "ter": 1}
TITLES = {"bleu": "BLEU", "nist": "NIST", "meteor": "METEOR", "rouge_l": "ROUGE-L", "cider": "CIDEr", "ter": "TER"}
NAMES = {"tuned": "tuned", "pruned": "pruned, before recovery", "recovered": "recovered and merged"}


def described(prune: dict[str, Any]) -> str:
    """A pruning in words."""
    if "weights" in prune:
        return f"{prune['weights']:.0%} of the layers' weights"
    return f"{1 - prune['budget']['flops']:.0%} of the layers' FLOPs"


def tables(rows: list[dict[str, Any]]) -> str:
    """Return a table for each model.

    Args:
        rows: the stored rows.
    """
    if not rows:
        return "Nothing has been run yet."
    models = list(dict.fromkeys(row["cell"]["model"] for row in rows))
    return "\n\n".join(_model([row for row in rows if row["cell"]["model"] == model]) for model in models)


def _model(rows: list[dict[str, Any]]) -> str:
    cell, first = rows[0]["cell"], rows[0]
    scored = [name for name in SCORES if name in first["figures"]["tuned"]]
    heads = ["pruned", "state", *(TITLES[name] for name in scored), "perplexity", "FLOPs of the layers", "zeros"]
    lines = [
        f"### {cell['model']}",
        "",
        _slice(cell, first),
        "",
        "| " + " | ".join(heads) + " |",
        "|" + " --- |" * len(heads),
        _line("nothing", "tuned", first, scored, first["figures"]["tuned"]["encoder_flops"], zeros=0.0),
    ]
    for row in rows:
        whole = row["figures"]["tuned"]["encoder_flops"]
        what = described(row["cell"]["prune"])
        lines += [_line(what, state, row, scored, whole, zeros=row["zeros"]) for state in ("pruned", "recovered")]
    lines += ["", _examples(rows)]
    missing = [f"{TITLES[name]}: {why}" for name, why in first["missing"].items()]
    return "\n".join(lines + ([f"\nNot scored: {'; '.join(missing)}."] if missing else []))


def _slice(cell: dict[str, Any], row: dict[str, Any]) -> str:
    """What was learned from and scored, and how."""
    steps = -(-cell["train"] // cell["batch"])
    return (
        f"{cell['train']} of 42,061 training rows, {cell['validation']} of 547 validation sources, {cell['test']} of "
        "630 test sources, drawn by seed 0. The perplexity is of all of these; texts were written for the first "
        f"{cell['written']} of them in the file's order, against {row['references']} references. "
        f"Tuning: {cell['tune']} epoch(s) of {steps} steps of {cell['batch']} at {cell['lr']:g}; recovering: "
        f"{_recovery(cell)} at half that. Update on all linears of the layers, r = {cell['r']}, N = 64, "
        f"{row['trainable']:,} trained numbers. {cell['beams']} beam(s)."
    )


def _recovery(cell: dict[str, Any]) -> str:
    steps = cell.get("recover_steps")
    return f"{steps} steps" if steps else f"{cell['recover']} epoch(s)"


def _line(what: str, state: str, row: dict[str, Any], scored: list[str], whole: int, *, zeros: float) -> str:
    found = row["figures"][state]
    cells = [
        what,
        NAMES[state],
        *(f"{found[name]:.{SCORES[name]}f}" for name in scored),
        f"{found['perplexity']:.1f}",
        f"{found['encoder_flops'] / whole:.0%}",
        f"{zeros:.0%}",
    ]
    return "| " + " | ".join(cells) + " |"


def _examples(rows: list[dict[str, Any]]) -> str:
    """The first text of each variant, as it was written."""
    first = rows[0]["texts"]
    lines = [f"The first test source, `{first['tuned'][0]['prompt']}`:", "", f"- tuned: {first['tuned'][0]['text']!r}"]
    for row in rows:
        said = row["texts"]["recovered"][0]["text"]
        lines.append(f"- recovered after {described(row['cell']['prune'])} went: {said!r}")
    return "\n".join(lines)
