"""The README.md inside an artifact: what it is and how to load it."""

from __future__ import annotations

from typing import Any

from dsee.architectures._registry import CUT_PREFIX
from dsee.artifact.auto import auto_class
from dsee.steps import Step

_HEAD = """---
library_name: dsee
tags:
- dsee
- pruning
---

# {title}

{summary}

```python
{code}
```

"""

_LOAD = {
    "own": """import dsee  # registers the class; without it AutoModel stops at model_type {model_type!r}
model = dsee.load("this-folder")  # or transformers.{auto}.from_pretrained("this-folder")""",
    "stock": """import transformers
model = transformers.{auto}.from_pretrained("this-folder")  # or dsee.load, which checks every file first""",
    "adapted": """import dsee
model = dsee.load("this-folder")  # a PeftModel: the base in this folder with the update in adapter/""",
    "update": """import dsee
model = dsee.load("this-folder", base=base)  # base: the model it was tuned on; its weights are not in here""",
}


def describe(step: Step) -> str:
    """Return one line about a step of the history.

    Args:
        step: as recorded by ``dsee.history``.
    """
    name = step["step"]
    if name == "prune":
        # a schedule that grew its masks while tuning tells its rule alone
        before, after = step.get("before", {}), step.get("after", {})
        rules = ", ".join(_rule(facts) for facts in step["rules"])
        if "zeros_after" in step:
            parts = [f"zeros {step['zeros_before']:.1%} -> {step['zeros_after']:.1%}"]
        else:
            parts = [f"{unit} {sum(before[unit])} -> {sum(after[unit])}" for unit in before]
        return f"{name}: {', '.join(parts)} ({rules})" if parts else f"{name}: {rules}"
    facts = ", ".join(f"{k} {v}" for k, v in sorted(step.items()) if k not in ("step", "dsee"))
    return f"{name}: {facts}" if facts else str(name)


def _rule(facts: dict[str, Any]) -> str:
    """A rule in a few words: "weights 0.5 by fisher, global", "n_of_m 2:4 by update"."""
    if "n" in facts:
        return f"{facts['rule']} {facts['n']}:{facts['m']} by {facts['score']}"
    if "ratio" in facts:
        shape = "".join(f" {down}x{across}" for down, across in [facts["shape"]]) if "shape" in facts else ""
        return f"{facts['rule']}{shape} {facts['ratio']} by {facts['score']}, {facts['scope']}"
    if facts["rule"] == "budget":
        kind = next(kind for kind in ("flops", "latency", "parameters") if kind in facts)
        return f"at most {facts[kind]} of the {kind} by {facts['score']}"
    if "explicit" in facts:
        return f"{facts['rule']} as named"
    return f"{facts['rule']} {facts['amount']} by {facts['score']} per {facts['scope']}"


def card(model: Any, kind: str, model_type: str, history: list[Step], structure: dict[str, list[int]] | None) -> str:
    """Return the text of the card.

    Args:
        model: the transformers model being saved.
        kind: "model", "adapted" or "update", as in the manifest.
        model_type: the ``model_type`` it is saved under.
        history: its steps.
        structure: heads and neurons of each layer.
    """
    way = kind if kind != "model" else "own" if model_type.startswith(CUT_PREFIX) else "stock"
    parameters = sum(p.numel() for p in model.parameters())
    what = "An update of a" if kind == "update" else "A"
    summary = f"{what} {type(model).__name__} of {parameters / 1e6:.1f} M parameters, made with dsee."
    auto = auto_class(model)
    text = _HEAD.format(
        title=f"{type(model).__name__} ({model_type})",
        summary=summary,
        code=_LOAD[way].format(model_type=model_type, auto=auto),
    )
    if history:
        text += "## How it was made\n\n" + "".join(f"{i}. {describe(s)}\n" for i, s in enumerate(history, 1)) + "\n"
    if structure:
        text += "## Layers\n\n| layer | heads | neurons |\n| --- | --- | --- |\n"
        rows = zip(structure["heads"], structure["neurons"], strict=True)
        text += "".join(f"| {i} | {heads} | {neurons} |\n" for i, (heads, neurons) in enumerate(rows))
    return text
