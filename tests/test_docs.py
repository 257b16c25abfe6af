"""The code in the documentation runs as it stands."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from conftest import batch, save_pretrained_bert
from dsee.training.recipe_file import parse_recipe

ROOT = Path(__file__).parent.parent
PAGES = sorted(ROOT.glob("docs/*.md"))


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def run(code, name, namespace):
    exec(compile(code, name, "exec"), namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_a_pages_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from dsee.architectures._registry import _MAPS
    from dsee.pruning.scores import _SCORES
    from dsee.pruning.weight_scores import _NEEDS, _WEIGHT_SCORES
    from dsee.support._registry import _RULES

    kept = [(registry, dict(registry)) for registry in (_MAPS, _SCORES, _WEIGHT_SCORES, _NEEDS, _RULES)]
    try:
        run("\n".join(blocks(page, "python")), page.name, {"__name__": "docs"})
    finally:
        for registry, content in kept:
            registry.clear()
            registry.update(content)


RECIPES = [
    text
    for page in ("recipes", "recovery", "tasks", "generation", "training-distributed")
    for text in blocks(ROOT / "docs" / f"{page}.md", "yaml")
]


@pytest.mark.parametrize("number", range(len(RECIPES)))
def test_the_documented_recipes_are_valid(number):
    assert parse_recipe(yaml.safe_load(RECIPES[number]), "docs").model


def test_the_documented_defaults_are_the_defaults():
    documented = parse_recipe(yaml.safe_load(blocks(ROOT / "docs" / "recipes.md", "yaml")[1]), "docs")
    minimal = {"model": documented.model, "data": {"train": documented.data.train}}
    expected = parse_recipe(minimal | {"prune": {"heads": 0.25, "neurons": 0.4}}, "minimal")
    assert documented == expected


def test_the_readmes_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from transformers import TrainingArguments

    code = blocks(ROOT / "README.md", "python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    rows = [{k: v[i] for k, v in batch(8, labels=True).items()} for i in range(8)]
    for row in rows:
        row["labels"] %= 2
        row["input_ids"] %= 20
    arguments = TrainingArguments(
        "scratch", max_steps=2, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True
    )
    batches = [{k: torch.stack([row[k] for row in rows]) for k in rows[0]}]
    namespace = {
        "name": str(save_pretrained_bert(tmp_path / "bert")),
        "arguments": arguments,
        "train": rows,
        "batches": batches,
    }
    run(code, "README.md", namespace)
    assert (tmp_path / "small-onnx" / "model.onnx").is_file()
