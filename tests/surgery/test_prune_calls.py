"""``dsee.prune``: what it takes, what it reports, and what it refuses."""

import pytest
import torch
from mask_oracle import ALL_LINEARS, assert_equal_logits, strong, zeroed

import dsee
from conftest import adapted, batch, logits, tiny_bert
from dsee.architectures import structure
from dsee.pruning import plan_for

FULL = {"heads": [4, 4, 4], "neurons": [40, 40, 40]}


def test_prune_equals_a_mask_of_what_it_reports(family):
    model = strong(family(), target_modules=ALL_LINEARS)
    untouched = strong(family(), target_modules=ALL_LINEARS)
    report = dsee.prune(model, dsee.Heads(0.5), dsee.Neurons(0.4, score="weight+update", scope="global"))
    heads, neurons = report.plans
    assert_equal_logits(model, zeroed(zeroed(untouched, heads), neurons))


def test_the_report_counts_what_is_there(family):
    model = family()
    report = dsee.prune(model, dsee.Heads(0.25, score="weight"), dsee.Neurons(0.5))
    assert report.before == FULL
    assert report.after == structure(model) == {"heads": [3, 3, 3], "neurons": [20, 20, 20]}
    assert str(report) == (
        "heads: 12 -> 9 (25.0% removed; by layer: 3 3 3)\nneurons: 120 -> 60 (50.0% removed; by layer: 20 20 20)"
    )


def test_the_order_of_the_rules_makes_no_difference():
    one, other = tiny_bert(), tiny_bert()
    rules = dsee.Heads(0.5, score="taylor"), dsee.Neurons(0.5, score="taylor")
    calibration = [batch(labels=True)]
    dsee.prune(one, *rules, calibration=calibration)
    dsee.prune(other, *reversed(rules), calibration=calibration)
    assert torch.equal(logits(one), logits(other))


def test_every_rule_is_decided_on_the_model_as_given():
    model = tiny_bert()
    rules = dsee.Heads(0.5, score="taylor"), dsee.Neurons(0.5, score="taylor")
    calibration = [batch(labels=True)]
    expected = tuple(plan_for(model, rule, calibration) for rule in rules)
    assert dsee.prune(model, *rules, calibration=calibration).plans == expected


def test_a_generator_serves_two_rules():
    one, other = tiny_bert(), tiny_bert()
    rules = dsee.Heads(0.5, score="taylor"), dsee.Neurons(0.5, score="taylor")
    dsee.prune(one, *rules, calibration=[batch(labels=True, seed=s) for s in range(2)])
    dsee.prune(other, *rules, calibration=(batch(labels=True, seed=s) for s in range(2)))
    assert torch.equal(logits(one), logits(other))


def test_pruning_twice(family):
    model = strong(family())
    untouched = strong(family())
    first = dsee.prune(model, dsee.Heads(1), dsee.Neurons(8))
    second = dsee.prune(model, dsee.Heads(1), dsee.Neurons(8))
    assert second.before == first.after == {"heads": [3] * 3, "neurons": [32] * 3}
    assert second.after == structure(model) == {"heads": [2] * 3, "neurons": [24] * 3}
    at_once = dsee.prune(untouched, dsee.Heads(2), dsee.Neurons(16))
    assert at_once.after == second.after
    # removing heads and neurons changes no other head's update and no other neuron's weight
    assert torch.equal(logits(model), logits(untouched))


def test_the_last_head_and_the_last_neuron_cannot_go():
    model = tiny_bert()
    dsee.prune(model, dsee.Heads(3, score="weight"), dsee.Neurons(39))
    for rule in (dsee.Heads(1, score="weight"), dsee.Neurons(1), dsee.Heads(0.9, score="weight")):
        with pytest.raises(dsee.InputError, match="at least one stays"):
            dsee.prune(model, rule)
    assert structure(model) == {"heads": [1, 1, 1], "neurons": [1, 1, 1]}


def test_no_rule_is_refused():
    with pytest.raises(dsee.InputError, match="at least one rule"):
        dsee.prune(tiny_bert())


def test_two_rules_for_one_unit_are_refused():
    model = tiny_bert()
    with pytest.raises(dsee.InputError, match="same unit"):
        dsee.prune(model, dsee.Neurons(0.2), dsee.Heads(1, score="weight"), dsee.Neurons(0.3))
    assert structure(model) == FULL


def test_a_second_rule_that_cannot_be_met_leaves_the_model_whole():
    model = tiny_bert()
    with pytest.raises(dsee.InputError, match="at most 39"):
        dsee.prune(model, dsee.Heads(1, score="weight"), dsee.Neurons(40))
    assert structure(model) == FULL
    assert dsee.history(model) == []


def test_a_merged_update_is_refused():
    model = adapted(tiny_bert())
    model.merge_adapter()
    with pytest.raises(dsee.OrderError, match="merged"):
        dsee.prune(model, dsee.Heads(0.25))
    assert structure(model) == FULL
    assert dsee.history(model) == []


def test_the_update_score_needs_an_update():
    model = tiny_bert()
    with pytest.raises(dsee.OrderError, match="carry none"):
        dsee.prune(model, dsee.Heads(0.25))
    assert structure(model) == FULL


@pytest.mark.parametrize(
    "rule", [dsee.Neurons(3, multiple_of=8), dsee.Neurons(0.25, multiple_of=64), dsee.Neurons(1, multiple_of=40)]
)
def test_a_rule_that_rounding_reduces_to_nothing_is_refused(rule):
    model = tiny_bert()
    with pytest.raises(dsee.InputError, match="multiple"):
        dsee.prune(model, rule)
    assert dsee.history(model) == []


def test_the_same_call_gives_the_same_model(family):
    def pruned():
        model = strong(family(), target_modules=ALL_LINEARS)
        dsee.prune(model, dsee.Heads(0.5, score="random", seed=3), dsee.Neurons(0.3, score="update"))
        return model.state_dict()

    one, other = pruned(), pruned()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
