"""What gates do not go together with is refused by name, before anything has changed."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils import prune

import dsee
from conftest import adapted, logits, tiny_bert
from dsee.architectures import layers, structure
from dsee.pruning.gates import gate_parameters, gate_values, has_gates, penalise_steps, set_gates


@pytest.mark.parametrize(
    ("rule", "unit"), [(dsee.Heads(1, score="gate"), "heads"), (dsee.Neurons(8, score="gate"), "neurons")]
)
def test_the_gate_score_without_gates(rule, unit):
    model = tiny_bert()
    with pytest.raises(dsee.OrderError, match=rf"score='gate' ranks {unit} .* none on its {unit}.*add_gates"):
        dsee.prune(model, rule)
    assert structure(model) == structure(tiny_bert())


def test_the_gate_score_with_gates_on_the_other_unit():
    model = tiny_bert()
    dsee.add_gates(model, neurons=False)
    with pytest.raises(dsee.OrderError, match="none on its neurons"):
        dsee.prune(model, dsee.Heads(1, score="gate"), dsee.Neurons(8, score="gate"))
    assert has_gates(model)


def test_no_unit():
    with pytest.raises(dsee.InputError, match=r"heads=True"):
        dsee.add_gates(tiny_bert(), heads=False, neurons=False)


def test_gates_twice():
    model = tiny_bert()
    dsee.add_gates(model)
    with pytest.raises(dsee.OrderError, match="gates already"):
        dsee.add_gates(model)


@pytest.mark.parametrize("call", [dsee.fold_gates, dsee.gate_penalty])
def test_no_gates(call):
    with pytest.raises(dsee.OrderError, match="no gates"):
        call(tiny_bert())


@pytest.mark.parametrize("strength", [-1.0, float("nan")])
def test_a_negative_strength(strength):
    model = tiny_bert()
    dsee.add_gates(model)
    with pytest.raises(dsee.InputError, match="strength"):
        dsee.gate_penalty(model, strength)
    with pytest.raises(dsee.InputError, match="strength"):
        dsee.GateCallback(strength)


def test_an_optimizer_made_before_the_gates():
    model = tiny_bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dsee.add_gates(model)
    with pytest.raises(dsee.OrderError, match="make it after"):
        penalise_steps(model, optimizer)


def test_a_merged_update():
    model = adapted(tiny_bert())
    model.merge_adapter()
    with pytest.raises(dsee.OrderError, match="unmerge"):
        dsee.add_gates(model)
    model.unmerge_adapter()
    dsee.add_gates(model)
    model.merge_adapter()
    with pytest.raises(dsee.OrderError, match="unmerge"):
        dsee.fold_gates(model)
    assert has_gates(model)


def test_an_update_around_a_gated_linear():
    model = tiny_bert()
    dsee.add_gates(model)
    with pytest.raises(dsee.OrderError, match=r"output\.dense.*before dsee\.add_gates"):
        adapted(model, target_modules=["output.dense"])


def test_an_update_elsewhere_leaves_gates_trainable():
    model = tiny_bert()
    dsee.add_gates(model)
    wrapped = adapted(model)
    assert all(gate.requires_grad for gate in gate_parameters(wrapped))


@pytest.mark.parametrize("verb", ["unload", "merge_and_unload"])
def test_peft_does_not_throw_gates_away(verb):
    model = adapted(tiny_bert(), target_modules=["query", "output.dense"])
    dsee.add_gates(model)
    before = logits(model)
    with pytest.raises(dsee.OrderError, match="fold_gates"):
        getattr(model, verb)()
    assert torch.equal(logits(model), before)
    dsee.fold_gates(model)
    getattr(model, verb)()


def test_another_methods_layer():
    model = get_peft_model(tiny_bert(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["output.dense"]))
    with pytest.raises(dsee.ArchitectureError, match="folded"):
        dsee.add_gates(model)
    assert not has_gates(model)


def test_a_recomputed_weight():
    model = tiny_bert()
    prune.l1_unstructured(layers(model)[2].part("ffn_out"), "weight", 0.5)
    with pytest.raises(dsee.InputError, match="recomputed"):
        dsee.add_gates(model)
    assert not has_gates(model)


def test_a_diverged_gate():
    model = tiny_bert()
    dsee.add_gates(model)
    weights = [view.part("output").weight.detach().clone() for view in layers(model)]
    with torch.no_grad():
        gate_parameters(model)[-1][3] = float("nan")
    with pytest.raises(dsee.ArtifactError, match="NaN"):
        dsee.fold_gates(model)
    assert has_gates(model)
    assert all(torch.equal(w, view.part("output").weight) for w, view in zip(weights, layers(model), strict=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values | {"7.heads": torch.ones(4)},
        lambda values: values | {"0.heads": torch.ones(5)},
        lambda values: {"0.heads": torch.ones(4)},
    ],
)
def test_stored_gates_that_do_not_fit(change):
    model = tiny_bert()
    dsee.add_gates(model)
    with pytest.raises(dsee.InputError, match="gates"):
        set_gates(model, change(gate_values(model)))


def test_a_merge_policy_that_refuses_leaves_the_gates():
    model = adapted(tiny_bert())
    layers(model)[0].part("query").get_base_layer().weight.data[:8] = 0.0
    dsee.add_gates(model)
    with pytest.raises(dsee.OrderError, match="zeros"):
        dsee.merge(model, policy="error")
    assert has_gates(model)
