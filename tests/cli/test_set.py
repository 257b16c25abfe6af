"""`dsee run --set`: other values of a recipe's keys."""

import pytest
import yaml

from chain import prepare
from dsee.errors import InputError
from dsee.training.recipe_file import change, load_recipe


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("seed=3", {"seed": 3}),
        ("tune.epochs=1", {"tune": {"epochs": 1, "batch_size": 8}}),
        ("recover.epochs=1", {"recover": {"epochs": 1}}),
        ("prune=", {"prune": None}),
        ("prune=null", {"prune": None}),
        ("export={onnx: []}", {"export": {"onnx": []}}),
        (" model =a=b", {"model": "a=b"}),
        ("data.where.lang=en", {"data": {"train": "t.csv", "where": {"lang": "en"}}}),
    ],
)
def test_a_key_gets_another_value(text, found):
    content = {"model": "m", "data": {"train": "t.csv"}, "tune": {"batch_size": 8}, "prune": {"weights": 0.5}}
    expected = content | found
    change(content, text)
    assert content == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed", "--set seed: give KEY=VALUE"),
        ("=3", "give KEY=VALUE"),
        ("tune..epochs=1", "give KEY=VALUE"),
        ("prune.weights.score=weight", "prune.weights is 0.5 in the recipe. Give prune.weights={...} as a whole"),
        ("seed=[", "not valid YAML"),
        ("update={r: 1, r: 2}", "occurs twice"),
    ],
)
def test_what_is_no_change_is_refused(text, said):
    with pytest.raises(InputError) as found:
        change({"prune": {"weights": 0.5}}, text)
    assert said in str(found.value)


def test_numbers_without_a_dot_are_numbers(tmp_path, model_folder):
    path = prepare(tmp_path, model_folder)
    assert load_recipe(path, ["tune.learning_rate=5e-5"]).tune.learning_rate == 5e-5


def test_the_command_takes_several_and_names_what_is_wrong(dsee_command, tmp_path, model_folder, monkeypatch):
    import dsee.cli.run

    given = []
    monkeypatch.setattr(dsee.cli.run, "carry_out", lambda *arguments: given.append(arguments))
    path = prepare(tmp_path, model_folder)
    assert dsee_command("run", path, "--set", "tune.epochs=1", "--set", "seed=4")[0] == 0
    recipe = given.pop()[0]
    assert (recipe.tune.epochs, recipe.seed, recipe.tune.batch_size) == (1, 4, 8)
    code, _, err = dsee_command("run", path, "--set", "tune.epoch=1")
    assert code == 2
    assert "tune.epoch: unknown key. Did you mean 'epochs'?" in err
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["tune"]["epochs"] == 6
