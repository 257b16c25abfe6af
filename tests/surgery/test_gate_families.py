"""Gates and budgets on every mapped family: grouped heads, gated neurons, fused projections, two stacks."""

from copy import deepcopy

import pytest
import torch
from mask_oracle import TOLERANCE, strong, zeroed

import dsee
from cut_families import HEADED, LINEARS, NAMES, T5S, answer, build, inputs, task_type
from dsee.architectures import layers, structure
from dsee.pruning.costs import counted
from dsee.pruning.gates import gate_parameters, has_gates
from dsee.surgery import timing


def gated(name):
    model = strong(build(name), target_modules=LINEARS, task_type=task_type(name)).double()
    plain = answer(model, name)
    dsee.add_gates(model)
    assert torch.equal(answer(model, name), plain)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for gate in gate_parameters(model):
            gate.copy_(0.5 + torch.rand(gate.shape, generator=generator))
    assert (answer(model, name) - plain).abs().max() > 1e-2
    return model


def assert_close(one, other):
    # as relative to the logits of language models, which are of order ten and more
    scale = float(other.abs().max().clamp(min=1.0))
    torch.testing.assert_close(one, other, rtol=0.0, atol=scale * TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", NAMES)
def test_folding_changes_no_logit(name):
    model = gated(name)
    before = answer(model, name)
    dsee.fold_gates(model)
    assert not has_gates(model)
    assert_close(answer(model, name), before)


@pytest.mark.parametrize("name", NAMES)
def test_pruning_by_gates_equals_the_rest_zeroed(name):
    model = gated(name)
    oracle = deepcopy(model)
    rules = [dsee.Neurons(0.4, score="gate", scope="global")]
    rules += [dsee.Heads(0.5, score="gate")] if name in HEADED else []
    report = dsee.prune(model, *rules)
    for plan in report.plans:
        oracle = zeroed(oracle, plan)
    assert_close(answer(model, name), answer(oracle, name))


@pytest.mark.parametrize("name", NAMES)
def test_a_budgets_flops_are_the_counters(name):
    model = build(name)
    costs = counted(model, "flops", 2, 12)
    assert costs.dense == costs.of(structure(model)) == dsee.flops(model, 2, 12).encoder
    # T5's heads stay, and so does its attention over the encoder's states
    share = 0.8 if name in T5S else 0.6
    budget = dsee.Budget(flops=share, score="fisher", batch=2, sequence=12, steps=2)
    report = dsee.prune(model, budget, calibration=[inputs(name, labels=True)])
    assert share - 0.1 < report.budget.share == dsee.flops(model, 2, 12).encoder / costs.dense <= share
    assert (report.after["heads"] == report.before["heads"]) is (name in T5S)


@pytest.mark.parametrize("name", NAMES)
def test_a_budgets_parameters_are_the_matrices(name):
    model = build(name)
    costs = counted(model, "parameters")
    matrices = {
        id(linear): linear
        for view in layers(model)
        for linear in (*view.linears("heads").values(), *view.linears("neurons").values(), *view.crossing())
    }
    assert costs.dense == sum(linear.weight.numel() for linear in matrices.values())
    report = dsee.prune(model, dsee.Budget(parameters=0.7, score="random"))
    matrices = {
        id(linear): linear
        for view in layers(model)
        for linear in (*view.linears("heads").values(), *view.linears("neurons").values(), *view.crossing())
    }
    assert sum(linear.weight.numel() for linear in matrices.values()) / costs.dense == report.budget.share <= 0.7


@pytest.mark.parametrize("name", NAMES)
def test_layers_of_every_family_can_be_timed(name):
    model = build(name)
    if name in T5S:
        with pytest.raises(dsee.ArchitectureError, match="encoder and a decoder"):
            timing.choose_within(model, dsee.Budget(latency=0.8, score="random", batch=1, sequence=8))
        return
    views, given = layers(model), timing._inputs(model, dsee.Budget(latency=0.8, batch=1, sequence=8))
    assert timing.measured_costs(views, given).dense > 0
    assert timing._measured_share(views, [timing.LayerPlan((0,), (1, 2))] * 3, given) > 0
