"""Scores of fused, shared and gated parts equal what a model with the parts apart would say."""

import pytest
import torch
from score_oracle import assert_scores, delta, score

import dsee
from conftest import adapted
from cut_families import HEADED, LINEARS, NAMES, T5S, build, inputs, task_type
from dsee.architectures import layers

SIZE = 8


def units(name):
    return ("neurons",) if name in T5S else ("heads", "neurons")


CASES = [(name, unit) for name in NAMES for unit in units(name)]


def updated(name, **config):
    return adapted(build(name), target_modules=LINEARS, task_type=task_type(name), support="random", **config)


def weight(linear):
    base = linear.base_layer if hasattr(linear, "base_layer") else linear
    return (base.weight.T if type(base).__name__ == "Conv1D" else base.weight).detach().double()


def apart(view, name, matrix):
    """The six or seven matrices of a layer, taken from where the family's source code reads them."""
    own = view.module
    if name == "gpt2":
        query, key, value = matrix(own.attn.c_attn).split(32)
        return {
            "heads": [query, key, value, matrix(own.attn.c_proj)],
            "ins": [matrix(own.mlp.c_fc)],
            "out": matrix(own.mlp.c_proj),
        }
    if name.startswith("deberta"):
        at = own.attention.self
        heads = [matrix(p) for p in (at.query_proj, at.key_proj, at.value_proj, own.attention.output.dense)]
        return {"heads": heads, "ins": [matrix(own.intermediate.dense)], "out": matrix(own.output.dense)}
    if name in T5S:
        ffn = own.layer[-1].DenseReluDense
        ins = [ffn.wi] if name == "t5" else [ffn.wi_0, ffn.wi_1]
        return {"ins": [matrix(p) for p in ins], "out": matrix(ffn.wo)}
    at, mlp = own.self_attn, own.mlp
    heads = [matrix(p) for p in (at.q_proj, at.k_proj, at.v_proj, at.o_proj)]
    return {"heads": heads, "ins": [matrix(mlp.gate_proj), matrix(mlp.up_proj)], "out": matrix(mlp.down_proj)}


def sums(view, name, unit, matrix, *, update_only=False):
    parts = apart(view, name, matrix)
    if unit == "neurons":
        return [
            float(sum(part[i].abs().sum() for part in parts["ins"]) + parts["out"][:, i].abs().sum()) for i in range(40)
        ]
    query, key, value, output = parts["heads"]
    wide = SIZE * (query.shape[0] // key.shape[0])
    totals = []
    for head in range(4):
        shared, own = slice(head * wide, (head + 1) * wide), slice(head * SIZE, (head + 1) * SIZE)
        total = query[shared].abs().sum() + value[own].abs().sum()
        if not update_only:
            total = total + key[own].abs().sum() + output[:, shared].abs().sum()
        totals.append(float(total))
    return totals


def both(linear):
    return weight(linear) + delta(linear)


@pytest.mark.parametrize(("name", "unit"), CASES)
def test_weight_and_update(name, unit):
    model = updated(name)
    views = layers(model)
    for called, matrix, only in (("weight", weight, False), ("weight+update", both, False), ("update", delta, True)):
        expected = [sums(view, name, unit, matrix, update_only=only) for view in views]
        assert min(min(layer) for layer in expected) > 0
        assert_scores(score(model, called, unit), expected)


@pytest.mark.parametrize(("name", "unit"), CASES)
def test_random_has_one_number_for_each(name, unit):
    sizes = [len(values) for values in score(build(name), "random", unit)]
    assert sizes == [4 if unit == "heads" else 40] * 3


@pytest.mark.parametrize(("name", "unit"), CASES)
def test_taylor_is_the_gradient_of_explicit_gates(name, unit):
    model = build(name).double()
    batches = [inputs(name, 2, 6, labels=True, seed=seed) for seed in range(2)]
    expected = gate_gradients(model, name, unit, batches)
    # a rectifier may never let some neurons fire
    assert min(values.median() for values in expected) > 0
    assert_scores(score(model, "taylor", unit, batches), expected)


def gate_gradients(model, name, unit, batches):
    """Mean over examples of |dLoss/dgate|, one example at a time."""
    count = 4 if unit == "heads" else 40
    gates = [torch.ones(count, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def hook(gate):
        return lambda _, args: (args[0] * gate.repeat_interleave(args[0].shape[-1] // count),)

    part = "output" if unit == "heads" else "ffn_out"
    hooks = [view.part(part).register_forward_pre_hook(hook(g)) for view, g in zip(layers(model), gates, strict=True)]
    found = []
    for each in batches:
        for i in range(2):
            example = {key: values[i : i + 1] for key, values in each.items()}
            found.append(torch.autograd.grad(model(**example).loss, gates))
    for each in hooks:
        each.remove()
    return [torch.stack(of_layer).abs().mean(0) for of_layer in zip(*found, strict=True)]


@pytest.mark.parametrize("name", HEADED)
def test_prune_by_each_score(name):
    calibration = [inputs(name, labels=True)]
    for called in ("update", "weight", "weight+update", "taylor", "random"):
        model = updated(name)
        rules = dsee.Heads(0.25, score=called), dsee.Neurons(0.4, score=called, scope="global")
        report = dsee.prune(model, *rules, calibration=calibration)
        assert report.after["heads"] == [3, 3, 3]
        assert sum(report.after["neurons"]) == 72


@pytest.mark.parametrize("name", T5S)
def test_the_heads_of_t5_are_refused_by_name_and_its_neurons_are_not(name):
    model = updated(name)
    with pytest.raises(dsee.ArchitectureError, match=r"heads of 't5' cannot be removed: .* Remove neurons"):
        dsee.prune(model, dsee.Neurons(0.5), dsee.Heads(0.25, score="weight"))
    assert dsee.history(model) == []
    assert dsee.prune(model, dsee.Neurons(0.5, score="update")).after["neurons"] == [20, 20, 20]
