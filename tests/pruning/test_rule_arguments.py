"""A rule that makes no sense is refused when it is written, not when it is carried out."""

import pytest

import dsee
from dsee.pruning import Rule, scores

RULES = [dsee.Heads, dsee.Neurons]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("amount", [0.0, 1.0, -0.25, 1.5, float("nan"), float("inf"), float("-inf")])
def test_a_ratio_lies_strictly_between_0_and_1(rule, amount):
    with pytest.raises(dsee.InputError, match="strictly between 0 and 1"):
        rule(amount)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("amount", [0, -1, -100])
def test_a_count_is_at_least_1(rule, amount):
    with pytest.raises(dsee.InputError, match="a count is at least 1"):
        rule(amount)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("amount", [True, False, None, "0.25", "3", [1], 1j])
def test_what_is_no_number_is_refused(rule, amount):
    with pytest.raises(dsee.InputError, match=r"neither a ratio such as 0\.25 nor a count such as 3"):
        rule(amount)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("written", "meant"), [("wieght", "weight"), ("Taylor", "taylor"), ("updates", "update"), ("rand", "random")]
)
def test_an_unknown_score_is_refused_with_the_nearest_name(rule, written, meant):
    with pytest.raises(dsee.InputError, match=f"Did you mean '{meant}'") as caught:
        rule(0.5, score=written)
    assert all(known in str(caught.value) for known in scores())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("written", "meant"), [("gobal", "global"), ("layers", "layer"), ("Layer", "layer")])
def test_an_unknown_scope_is_refused_with_the_nearest_name(rule, written, meant):
    with pytest.raises(dsee.InputError, match=f"Did you mean '{meant}'"):
        rule(0.5, scope=written)


def test_a_name_that_is_near_nothing_gets_no_guess():
    with pytest.raises(dsee.InputError, match="is not a score") as caught:
        dsee.Heads(0.5, score="xyzzy")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("multiple", [0, -8, 8.0, "8", True])
def test_multiple_of_is_a_whole_number_from_1_on(multiple):
    with pytest.raises(dsee.InputError, match="multiple_of"):
        dsee.Neurons(0.5, multiple_of=multiple)


@pytest.mark.parametrize("rule", RULES)
def test_the_defaults_are_the_documented_ones(rule):
    made = rule(0.25)
    assert isinstance(made, Rule)
    assert (made.score, made.scope, made.seed) == ("update" if rule is dsee.Heads else "weight", "layer", 0)


def test_a_rule_cannot_be_changed_afterwards():
    rule = dsee.Heads(0.25)
    with pytest.raises(AttributeError):
        rule.amount = 7
    assert rule == dsee.Heads(0.25)
