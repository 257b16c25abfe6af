"""A model saved while its gates are being tuned comes back with them."""

import pytest
import torch
from safetensors.torch import load_file

import dsee
from conftest import adapted, logits, tiny_bert
from dsee.pruning.gates import gate_parameters, gate_values


def gated(wrapped):
    model = adapted(tiny_bert(), target_modules=["query", "output.dense"]) if wrapped else tiny_bert()
    dsee.add_gates(model)
    with torch.no_grad():
        for gate in gate_parameters(model):
            gate.uniform_(-1.0, 1.0)
    return model


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_gates_come_back(wrapped, tmp_path):
    model = gated(wrapped)
    again = dsee.load(dsee.save(model, tmp_path / "one"), trainable=True)
    assert torch.equal(logits(again), logits(model))
    expected = gate_values(model)
    assert {name: torch.equal(gate, expected[name]) for name, gate in gate_values(again).items()} == dict.fromkeys(
        expected, True
    )
    assert all(gate.requires_grad for gate in gate_parameters(again))
    dsee.save(again, tmp_path / "two")
    names = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)


def test_gates_are_frozen_unless_tuning_goes_on(tmp_path):
    again = dsee.load(dsee.save(gated(True), tmp_path / "saved"))
    assert not any(gate.requires_grad for gate in gate_parameters(again))


def test_no_weight_file_holds_a_gate(tmp_path):
    folder = dsee.save(gated(True), tmp_path / "saved")
    for path in folder.rglob("*.safetensors"):
        assert (path.name == "gates.safetensors") is any("gate" in name or "heads" in name for name in load_file(path))


def test_a_model_without_gates_has_no_such_file(tmp_path):
    assert not (dsee.save(tiny_bert(), tmp_path / "saved") / "gates.safetensors").exists()
