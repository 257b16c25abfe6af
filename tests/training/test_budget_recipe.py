"""``prune: {budget: ...}`` and ``gates:`` in a recipe."""

import pytest

import dsee
from chain import prepare
from dsee.training import load_recipe, run
from dsee.training.chain import preflight, rules_of
from dsee.training.recipe_file import parse_recipe
from dsee.training.setting import Setting


def recipe(prune, **more):
    return parse_recipe({"model": "m", "data": {"train": "t.csv"}, "prune": prune} | more, "test")


def test_a_budget_becomes_a_rule_for_the_measured_shape(tmp_path):
    found = recipe(
        {"budget": {"flops": 0.5, "score": "fisher", "steps": 2}}, measure={"batch": 2, "sequence": 16}, seed=4
    )
    rule = dsee.Budget(flops=0.5, score="fisher", steps=2, batch=2, sequence=16, seed=4)
    assert rules_of(Setting(found, tmp_path, tmp_path)) == [rule]


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        ({"budget": {}}, "exactly one of flops, latency, parameters"),
        ({"budget": {"flops": 0.5, "latency": 0.5}}, "exactly one"),
        ({"budget": {"flops": 1.5}}, "prune.budget.flops: .*less than 1"),
        ({"budget": {"flop": 0.5}}, "Did you mean 'flops'"),
        ({"budget": {"flops": 0.5}, "heads": 0.25}, "chooses heads and neurons by itself"),
        ({"budget": {"flops": 0.5, "score": "gate"}}, "score 'gate' ranks heads .*gates: true"),
        ({"neurons": {"amount": 0.5, "score": "gate"}}, "score 'gate' ranks neurons .*gates: true"),
    ],
)
def test_impossible_wishes_are_refused(prune, message):
    with pytest.raises(dsee.InputError, match=message):
        recipe(prune)


def test_gates_on_the_wrong_unit_are_refused():
    with pytest.raises(dsee.InputError, match="ranks heads"):
        recipe({"heads": {"amount": 0.25, "score": "gate"}}, gates={"heads": False})
    with pytest.raises(dsee.InputError, match="nothing to gate"):
        recipe({"heads": 0.25}, gates={"heads": False, "neurons": False})


@pytest.mark.parametrize(
    ("budget", "message"), [({"flops": 0.05}, "cannot be met"), ({"flops": 0.5, "score": "tailor"}, "tailor")]
)
def test_what_cannot_be_met_is_found_before_tuning(budget, message, tmp_path, model_folder):
    path = prepare(tmp_path, model_folder, prune={"budget": budget})
    with pytest.raises(dsee.InputError, match=message):
        preflight(Setting(load_recipe(path), tmp_path, tmp_path / "out"))


def test_a_latency_is_left_to_the_tuned_model(tmp_path, model_folder):
    path = prepare(tmp_path, model_folder, prune={"budget": {"latency": 0.5}})
    preflight(Setting(load_recipe(path), tmp_path, tmp_path / "out"))


def test_the_whole_chain_by_gates_and_a_budget(tmp_path, model_folder):
    changes = {
        "prune": {"budget": {"flops": 0.6, "score": "gate"}, "calibration": 8},
        "gates": {"strength": 0.001},
        "tune": {"epochs": 1, "learning_rate": 1e-2, "batch_size": 8},
        "recover": {"epochs": 1, "learning_rate": 1e-2, "batch_size": 8},
        "export": {"onnx": []},
    }
    path = prepare(tmp_path, model_folder, **changes)
    stages = run(load_recipe(path), base=tmp_path).stages
    share = stages["prune"]["encoder_flops"] / stages["tune"]["encoder_flops"]
    assert 0.5 < share <= 0.6
    # 3 layers of 4 heads and 40 neurons each have one gate, beside the update and the task head
    assert stages["tune"]["trainable"] - stages["recover"]["trainable"] >= 3 * 44
    assert stages["merge"]["test"] == stages["recover"]["test"]
    assert "at most 0.6 of the flops by gate" in (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    gates = dsee.pruning.gates.gate_values(dsee.load(tmp_path / "out" / "stages" / "tuned"))
    assert len(gates) == 6
    assert all((gate != 1).all() for gate in gates.values())
