"""Recipes: what they may say, and what is said of those that say something else."""

from importlib.resources import files

import pytest

from dsee.errors import InputError
from dsee.pruning import Heads, Neurons
from dsee.training import load_recipe
from dsee.training.rules import rules_of
from dsee.training.setting import Setting

MINIMAL = "model: m\ndata: {train: t.csv}\n"


def recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


def complaint(tmp_path, text):
    with pytest.raises(InputError) as caught:
        recipe(tmp_path, text)
    return str(caught.value)


def test_defaults_and_short_forms(tmp_path):
    found = recipe(tmp_path, MINIMAL + "prune: {heads: 3, neurons: 0.4}\ntune: {learning_rate: 5e-4}\n")
    assert found.update.r == 8
    assert found.prune.heads.amount == 3
    assert found.prune.heads.score == "update"
    assert found.prune.neurons.amount == 0.4
    assert found.tune.learning_rate == 5e-4


@pytest.mark.parametrize("named", ["{0: [1, 3], 2: [0]}", "[[1, 3], [], [0]]"])
def test_heads_and_neurons_may_be_named(tmp_path, named):
    text = f"method: full\nprune: {{heads: {{explicit: {named}}}, neurons: {{explicit: {{1: [7]}}}}}}\nseed: 3\n"
    setting = Setting(recipe(tmp_path, MINIMAL + text), tmp_path, tmp_path)
    assert rules_of(setting) == [Heads(explicit={0: [1, 3], 2: [0]}), Neurons(explicit={1: [7]})]


@pytest.mark.parametrize("path", sorted(str(p) for p in files("dsee.recipes").iterdir() if p.name.endswith(".yaml")))
def test_shipped_recipes_are_valid(path):
    assert load_recipe(path).model


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("modle: m\ndata: {train: t}\n", "modle: unknown key. Did you mean 'model'?"),
        (MINIMAL + "tune: {learningrate: 0.1}\n", "tune.learningrate: unknown key. Did you mean 'learning_rate'?"),
        (MINIMAL + "update: {rank: 8}\n", "update.rank: unknown key."),
        (MINIMAL + "prune: {heads: {amuont: 0.2}}\n", "prune.heads.amuont: unknown key. Did you mean 'amount'?"),
        ("model: m\ndata: {train: t, txt: x}\n", "data.txt: unknown key. Did you mean 'text'?"),
        ("data: {train: t}\n", "model: this key is required"),
        (MINIMAL + "prune: {heads: 1.5}\n", "prune.heads.amount: a ratio lies strictly between 0 and 1"),
        (MINIMAL + "prune: {heads: 0}\n", "prune.heads.amount: a ratio lies strictly between 0 and 1"),
        (MINIMAL + "prune: {neurons: -0.2}\n", "prune.neurons.amount: a ratio lies strictly between 0 and 1"),
        (MINIMAL + "prune: {}\n", "give heads, neurons or both"),
        (MINIMAL + "prune: {heads: {score: weight}}\n", "prune.heads: say how many with amount, or which ones"),
        (MINIMAL + "prune: {heads: {amount: 2, explicit: {0: [1]}}}\n", "explicit says what goes; leave out amount"),
        (MINIMAL + "prune: {heads: {explicit: {0: [one]}}}\n", "prune.heads.explicit: which ones of each layer go"),
        (MINIMAL + "prune: {neurons: {explicit: [[-1]]}}\n", "prune.neurons.explicit: which ones of each layer go"),
        (
            MINIMAL + "baseline: gates-full\nprune: {heads: {explicit: {0: [1]}}}\n",
            "gates-full ranks by gates; give prune.heads an amount",
        ),
        (MINIMAL + "tune: {epochs: 0}\n", "tune.epochs:"),
        (MINIMAL + "tune: {distill: true}\n", "tune.distill: unknown key"),
        (MINIMAL + "prune: {blocks: 1.5}\n", "prune.blocks.ratio:"),
        (MINIMAL + "prune: {blocks: {ratio: 0.5, shap: [4, 1]}}\n", "Did you mean 'shape'?"),
        (MINIMAL + "prune: {blocks: 0.5, weights: 0.5}\n", "weights and blocks are patterns for the same weights"),
        (MINIMAL + "prune: {heads: 1, schedule: cubic}\n", "there is nothing to reach"),
        (MINIMAL + "prune: {blocks: {ratio: 0.5, score: movement}}\n", "learned while recovering; add a schedule"),
        (MINIMAL + "prune: {blocks: 0.5, schedule: cubc}\n", "prune.schedule.law:"),
        (MINIMAL + "prune: {blocks: 0.5, schedule: {start: 1.5}}\n", "prune.schedule.start"),
        (MINIMAL + "recover: {distill: true}\n", "nothing is pruned, so there is no model to teach"),
        (MINIMAL + "prune: {heads: 1}\nrecover: {distill: {temprature: 2}}\n", "Did you mean 'temperature'?"),
        (MINIMAL + "prune: {heads: 1}\nrecover: {distill: {temperature: 0}}\n", "recover.distill.temperature:"),
        (MINIMAL + "prune: {heads: 1}\nrecover: {distill: {alpha: 0}}\n", "say distill: false instead"),
        (MINIMAL + "export: {onnx: [int4]}\n", "export.onnx.0:"),
        (MINIMAL + "seed: many\n", "seed:"),
        ("model: m\ndata: {train: t, split: {validation: 0.5, test: 0.5}}\n", "leave nothing to train on"),
        ("model: m\ndata: {}\n", "data.train: say where the data is"),
        ("model: m\ndata: {glue: sst-2}\n", "Did you mean 'sst2'?"),
        ("model: m\ndata: {train: t, kind: regresion}\n", "(found: 'regresion'). Did you mean 'regression'?"),
        ("model: m\ndata: {glue: cola, label: y}\n", "glue decides label by itself"),
        ("model: m\nmodel: n\ndata: {train: t}\n", "line 2: not valid YAML: the key 'model' occurs twice"),
        ("model: [m\ndata: {\n", "not valid YAML"),
        ("- model\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
    ],
)
def test_mistakes_are_explained(tmp_path, text, expected):
    assert expected in complaint(tmp_path, text)


def test_all_mistakes_are_reported_at_once(tmp_path):
    found = complaint(tmp_path, "modle: m\ndata: {trian: t}\nseed: -1\n")
    for part in ("modle:", "model:", "data.trian:", "data.train:", "seed:"):
        assert part in found


def test_a_missing_recipe_names_the_nearest(tmp_path):
    recipe(tmp_path, MINIMAL)
    with pytest.raises(InputError, match=r"no such recipe. Did you mean 'recipe.yaml'"):
        load_recipe(tmp_path / "recipes.yaml")


def test_a_recipe_that_is_not_utf8(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"model: caf\xe9\n")
    with pytest.raises(InputError, match="not UTF-8"):
        load_recipe(tmp_path / "r.yaml")
