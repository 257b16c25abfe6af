"""The seven baselines: one key turns a recipe into each of them."""

import json

import pytest
import yaml

import dsee
from chain import prepare
from dsee.errors import InputError
from dsee.recipes import shipped
from dsee.training import load_recipe
from dsee.training.recipe_file import parse_recipe
from dsee.training.rules import check_recipe

#: A recipe with all that some baseline has not.
DSEE = {
    "model": "m",
    "data": {"train": "train.csv"},
    "update": {"r": 4, "n_sparse": 8, "support": "random", "masked": True, "target_modules": ["query", "value"]},
    "gates": True,
    "tune": {"epochs": 1, "up_ratio": 4, "sparse_learning_rate": 1e-3, "learning_rate": 2e-3},
    "recover": {"epochs": 1, "head_learning_rate": 1e-3},
    "prune": {
        "heads": {"amount": 1, "score": "gate"},
        "neurons": 0.4,
        "weights": {"ratio": 0.5, "score": "update"},
        "schedule": {"law": "cubic", "regrow": True},
    },
}
METHODS = {
    "full": "full",
    "lora": "lora",
    "bitfit": "bitfit",
    "norms": "norms",
    "lora-magnitude": "lora",
    "random": "dsee",
    "gates-full": "full",
}
#: Scores of heads, neurons and weights.
SCORES = {
    "full": ("gate", "taylor", "weight"),
    "lora": ("weight", "taylor", "update"),
    "bitfit": ("gate", "taylor", "weight"),
    "norms": ("gate", "taylor", "weight"),
    "lora-magnitude": ("weight", "weight", "weight"),
    "random": ("random", "random", "random"),
    "gates-full": ("gate", "gate", "weight"),
}


def baseline(name, **changes):
    return parse_recipe(DSEE | {"baseline": name} | changes, "r.yaml")


@pytest.mark.parametrize("name", METHODS)
def test_one_key_makes_it_the_baseline(name):
    recipe = baseline(name)
    check_recipe(recipe)
    assert recipe.method == METHODS[name]
    prune = recipe.prune
    assert (prune.heads.score, prune.neurons.score, prune.weights.score) == SCORES[name]
    # how much is pruned and trained stays what the recipe says
    assert (prune.heads.amount, prune.neurons.amount, prune.weights.ratio) == (1, 0.4, 0.5)
    assert (recipe.tune.learning_rate, recipe.tune.epochs, recipe.recover.epochs) == (2e-3, 1, 1)
    assert bool(recipe.gates) == (name in ("full", "bitfit", "norms", "gates-full"))
    assert prune.schedule.regrow == (recipe.method != "full")
    if recipe.method == "lora":
        assert (recipe.update.r, recipe.update.target_modules) == (4, ["query", "value"])
    if recipe.method != "dsee":
        assert (recipe.tune.up_ratio, recipe.recover.head_learning_rate) == (1.0, None)
    again = parse_recipe(recipe.model_dump(mode="json", exclude_unset=True) | {"baseline": name}, "r.yaml")
    assert again == recipe


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shown", ["minilm-rotten-tomatoes", "minilm-half-flops", "minilm-paper-heads"])
def test_every_baseline_of_a_shipped_recipe_is_valid(name, shown):
    recipe = load_recipe(shipped()[shown].path, [f"baseline={name}"])
    check_recipe(recipe)
    assert recipe.method == METHODS[name]


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("lora-magnitude", {"prune": None}, "baseline: lora-magnitude is a way to prune; add a prune section"),
        ("random", {"prune": None}, "baseline: random is a way to prune"),
        ("gates-full", {"prune": {"weights": 0.5}}, "baseline: gates-full cuts heads and neurons"),
        ("lora", {"method": "full", "update": {}}, "baseline: lora is method lora, and the recipe says method full"),
        ("lorra", {}, "baseline: Input should be 'full', 'lora'"),
    ],
)
def test_a_baseline_that_cannot_be_is_refused(name, changes, said):
    with pytest.raises(InputError) as found:
        baseline(name, **changes)
    assert said in str(found.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_command_runs_each_from_one_recipe(dsee_command, tmp_path, model_folder, name):
    prune = {"heads": 0.25, "neurons": {"amount": 0.4, "score": "weight"}, "calibration": 32}
    path = prepare(tmp_path, model_folder, prune=prune, export={"onnx": []})
    short = ("--set", "tune.max_steps=2", "--set", "recover.max_steps=2")
    code, _, err = dsee_command("run", path, "--set", f"baseline={name}", *short)
    assert code == 0, err
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert (report["recipe"]["baseline"], report["recipe"]["method"]) == (name, METHODS[name])
    assert f"Baseline `{name}`." in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    steps = dsee.history(dsee.load(tmp_path / "out" / "model"))
    # an update is merged too
    assert [step["step"] for step in steps][:3] == ["tune", "prune", "recover"]
    assert steps[0].get("method", "dsee") == METHODS[name]
    # the file itself is left alone
    assert "baseline" not in yaml.safe_load(path.read_text(encoding="utf-8"))
