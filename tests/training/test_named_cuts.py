"""``prune: {heads: {explicit: ...}}``: a recipe that names the heads and neurons that go."""

import pytest

import dsee
from chain import prepare
from dsee.training import load_recipe, run
from dsee.training.chain import preflight
from dsee.training.setting import Setting

NAMED = {"heads": {"explicit": {1: [0, 2]}}, "neurons": {"explicit": [[], [5, 7, 11]]}}


@pytest.mark.parametrize(
    ("named", "message"),
    [({0: [4]}, "heads"), ({7: [0]}, "layer"), ({0: [0, 1, 2, 3]}, "heads"), ({}, "names nothing that could go")],
)
def test_what_is_not_there_is_found_before_tuning(named, message, tmp_path, model_folder):
    path = prepare(tmp_path, model_folder, prune={"heads": {"explicit": named}})
    with pytest.raises(dsee.InputError, match=message):
        preflight(Setting(load_recipe(path), tmp_path, tmp_path / "out"))


@pytest.mark.parametrize("baseline", [None, "full"])
def test_they_go_and_no_others(baseline, tmp_path, model_folder):
    stage = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 8}
    changes = {"prune": NAMED, "tune": stage, "recover": stage, "export": {"onnx": []}, "baseline": baseline}
    stages = run(load_recipe(prepare(tmp_path, model_folder, **changes)), base=tmp_path).stages
    model = dsee.load(tmp_path / "out" / "model")
    layers = model.bert.encoder.layer
    widths = [(each.attention.self.query.out_features, each.intermediate.dense.out_features) for each in layers]
    assert widths == [(32, 40), (16, 37), (32, 40)]
    (step,) = [step for step in dsee.history(model) if step["step"] == "prune"]
    assert [rule["explicit"] for rule in step["rules"]] == [{"1": [0, 2]}, {"1": [5, 7, 11]}]
    assert stages["merge"]["test"] == stages["recover"]["test"]
