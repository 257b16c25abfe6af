"""What the rules for weights may say."""

import json

import pytest

import dsee
from dsee.pruning.mask_order import rule_of

RULES = [
    dsee.Weights(0.5),
    dsee.Weights(0.25, score="random", scope="layer", groups="one", floor=0.1, targets=["query", "value"], seed=3),
    dsee.Blocks(0.7),
    dsee.Blocks(0.7, shape=(1, 16), score="fisher"),
    dsee.NofM(2, 4),
    dsee.NofM(1, 8, score="weight", targets=["dense"]),
]


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_can_be_repeated_from_its_facts(rule):
    facts = json.loads(json.dumps(rule.facts()))
    assert rule_of(facts) == rule
    assert hash(rule_of(facts)) == hash(rule)


def test_a_rule_whose_score_is_not_known_here_can_still_be_read():
    facts = dsee.Weights(0.5).facts() | {"score": "somebody else's"}
    assert rule_of(facts) == dsee.Weights(0.5, score="weight")


@pytest.mark.parametrize("ratio", [0, 1, 0.0, 1.0, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize("rule", [dsee.Weights, dsee.Blocks])
def test_a_ratio_lies_between_0_and_1(rule, ratio):
    with pytest.raises(dsee.InputError, match="strictly between 0 and 1"):
        rule(ratio)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dsee.Weights("0.5"), "is not a number"),
        (lambda: dsee.Weights(True), "is not a number"),
        (lambda: dsee.Weights(0.5, score="fischer"), r"not a score of weights\. Did you mean 'fisher'"),
        (lambda: dsee.Weights(0.5, scope="globl"), r"scope='globl' is unknown\. Did you mean 'global'"),
        (lambda: dsee.Weights(0.5, groups="two"), "Use 'paper' or 'one'"),
        (lambda: dsee.Weights(0.5, floor=1.0), "floor=1.0 is out of range"),
        (lambda: dsee.Weights(0.5, floor=-0.1), "floor=-0.1 is out of range"),
        (lambda: dsee.Weights(0.8, floor=0.3), r"leaves 20\.0% of the weights, less than floor=0\.3 asks for"),
        (lambda: dsee.Weights(0.5, targets="query"), "has to be a list of names"),
        (lambda: dsee.Weights(0.5, targets=[]), "has to be a list of names"),
        (lambda: dsee.Blocks(0.5, shape=4), "two whole numbers, output rows x input columns"),
        (lambda: dsee.Blocks(0.5, shape=(4, 0)), "two whole numbers"),
        (lambda: dsee.Blocks(0.5, shape=(4, 1, 1)), "two whole numbers"),
        (lambda: dsee.NofM(4, 4), "0 < n < m"),
        (lambda: dsee.NofM(0, 4), "0 < n < m"),
        (lambda: dsee.NofM(4, 2), "0 < n < m"),
        (lambda: dsee.NofM(0.5, 4), "0 < n < m"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(dsee.InputError, match=message):
        make()
