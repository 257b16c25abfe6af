"""How many go: exactly as many as the rule says, from each layer or from all together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dsee
from conftest import tiny_bert
from dsee.pruning import LayerPlan, plan_for

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True, database=None)
HEADS, NEURONS, LAYERS = 4, 40, 3


@pytest.fixture(scope="module")
def bert():
    return tiny_bert()


def counts(plan, unit):
    return [len(getattr(layer, unit)) for layer in plan]


def half_up(share, size):
    whole = int(share * size)
    return whole + (share * size - whole >= 0.5)


@pytest.mark.parametrize("rule", [dsee.Heads, dsee.Neurons])
def test_only_the_unit_of_the_rule_goes(bert, rule):
    plan = plan_for(bert, rule(1, score="weight"))
    other = "neurons" if rule is dsee.Heads else "heads"
    assert counts(plan, other) == [0, 0, 0]
    assert counts(plan, rule.unit) == [1, 1, 1]
    assert all(isinstance(layer, LayerPlan) for layer in plan)


@pytest.mark.parametrize(
    ("amount", "gone"), [(0.125, 1), (0.25, 1), (0.374, 1), (0.375, 2), (0.5, 2), (0.75, 3), (0.8, 3), (1, 1), (3, 3)]
)
def test_heads_per_layer(bert, amount, gone):
    assert counts(plan_for(bert, dsee.Heads(amount, score="random")), "heads") == [gone] * LAYERS


@pytest.mark.parametrize(
    ("amount", "gone"),
    [(0.0125, 1), (0.1, 4), (0.33, 13), (0.5, 20), (0.7, 28), (0.975, 39), (1, 1), (17, 17), (39, 39)],
)
def test_neurons_per_layer(bert, amount, gone):
    assert counts(plan_for(bert, dsee.Neurons(amount)), "neurons") == [gone] * LAYERS


@pytest.mark.parametrize(("amount", "gone"), [(0.25, 3), (0.5, 6), (0.75, 9), (1, 1), (5, 5), (9, 9)])
def test_heads_over_all_layers(bert, amount, gone):
    plan = plan_for(bert, dsee.Heads(amount, score="random", scope="global"))
    assert sum(counts(plan, "heads")) == gone


@pytest.mark.parametrize(("amount", "gone"), [(0.1, 12), (0.5, 60), (0.97, 116), (1, 1), (117, 117)])
def test_neurons_over_all_layers(bert, amount, gone):
    plan = plan_for(bert, dsee.Neurons(amount, scope="global"))
    assert sum(counts(plan, "neurons")) == gone


@SETTINGS
@given(ratio=st.floats(0.02, 0.97), seed=st.integers(0, 50), scope=st.sampled_from(["layer", "global"]))
def test_any_ratio_of_the_neurons(bert, ratio, seed, scope):
    plan = plan_for(bert, dsee.Neurons(ratio, score="random", scope=scope, seed=seed))
    if scope == "layer":
        assert counts(plan, "neurons") == [half_up(ratio, NEURONS)] * LAYERS
    else:
        assert sum(counts(plan, "neurons")) == half_up(ratio, NEURONS * LAYERS)


@SETTINGS
@given(count=st.integers(1, 9), seed=st.integers(0, 50))
def test_any_plan_is_sorted_distinct_and_leaves_one_head(bert, count, seed):
    plan = plan_for(bert, dsee.Heads(count, score="random", scope="global", seed=seed))
    for layer in plan:
        assert list(layer.heads) == sorted(set(layer.heads))
        assert all(type(head) is int and 0 <= head < HEADS for head in layer.heads)
        assert len(layer.heads) < HEADS
    assert sum(counts(plan, "heads")) == count


@pytest.mark.parametrize("rule", [dsee.Heads(9, score="weight", scope="global"), dsee.Neurons(117, scope="global")])
def test_one_stays_in_each_layer_even_if_it_ranks_lowest(rule):
    model = tiny_bert()
    with torch.no_grad():
        for parameter in model.bert.encoder.layer[1].parameters():
            parameter.mul_(1e-6)
    plan = plan_for(model, rule)
    size = HEADS if rule.unit == "heads" else NEURONS
    assert counts(plan, rule.unit) == [size - 1] * LAYERS


@pytest.mark.parametrize(
    ("rule", "most"),
    [
        (dsee.Heads(4, score="weight"), 3),
        (dsee.Heads(100, score="weight"), 3),
        (dsee.Heads(0.9, score="weight"), 3),
        (dsee.Heads(10, score="weight", scope="global"), 9),
        (dsee.Heads(0.8, score="weight", scope="global"), 9),
        (dsee.Neurons(40), 39),
        (dsee.Neurons(0.99), 39),
        (dsee.Neurons(118, scope="global"), 117),
    ],
    ids=str,
)
def test_more_than_can_go_is_refused_with_the_most_that_can(bert, rule, most):
    with pytest.raises(dsee.InputError, match=f"at most {most} can go"):
        plan_for(bert, rule)


@pytest.mark.parametrize(
    "rule",
    [
        dsee.Heads(0.1, score="weight"),
        dsee.Heads(0.04, score="weight", scope="global"),
        dsee.Neurons(0.012),
        dsee.Neurons(0.004, scope="global"),
    ],
    ids=str,
)
def test_a_ratio_that_comes_to_nothing_is_refused(bert, rule):
    with pytest.raises(dsee.InputError, match=r"less than one\. Use a larger ratio"):
        plan_for(bert, rule)


def test_planning_changes_nothing():
    model = tiny_bert()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan_for(model, dsee.Neurons(0.5, score="random"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert dsee.history(model) == []
