"""A score of one's own is one decorated function."""

import importlib

import pytest
import torch

import dsee
from conftest import batch, tiny_bert
from dsee.pruning import plan_for, register_score, scores


@pytest.fixture(autouse=True)
def _fresh_registry(monkeypatch):
    module = importlib.import_module("dsee.pruning.scores")
    monkeypatch.setattr(module, "_SCORES", dict(module._SCORES))


def test_it_is_listed_and_used():
    @register_score("backwards")
    def backwards(given):
        return [torch.arange(view.heads, 0, -1.0) for view in given.layers]

    assert "backwards" in scores()
    assert scores() == sorted(scores())
    plan = plan_for(tiny_bert(), dsee.Heads(2, score="backwards"))
    assert [layer.heads for layer in plan] == [(2, 3)] * 3
    assert dsee.prune(tiny_bert(), dsee.Heads(2, score="backwards")).plans == (plan,)


def test_it_is_unknown_before():
    with pytest.raises(dsee.InputError, match="is not a score"):
        dsee.Heads(2, score="backwards")


def test_it_sees_what_it_may_look_at():
    model, calibration, seen = tiny_bert(), [batch(labels=True)], []

    @register_score("curious")
    def curious(given):
        seen.append(given)
        return [torch.zeros(view.neurons) for view in given.layers]

    plan_for(model, dsee.Neurons(2, score="curious", seed=9), calibration)
    (given,) = seen
    assert given.model is model
    assert [view.index for view in given.layers] == [0, 1, 2]
    assert (given.unit, given.seed, given.calibration) == ("neurons", 9, calibration)


def test_it_returns_the_function_it_decorates():
    def score(given):
        return [torch.zeros(view.heads) for view in given.layers]

    assert register_score("plain")(score) is score


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (torch.zeros(3), r"gave shape \(3,\) for 4 heads"),
        (torch.zeros(4, 1), r"gave shape \(4, 1\) for 4 heads"),
        (torch.tensor([0.0, float("inf"), 0, 0]), "NaN or infinite in layer 0"),
        (torch.tensor([0.0, float("nan"), 0, 0]), "NaN or infinite in layer 0"),
    ],
)
def test_a_score_that_returns_nonsense_is_refused(values, reason):
    register_score("nonsense")(lambda given: [values for _ in given.layers])
    with pytest.raises(dsee.InputError, match=reason):
        dsee.prune(tiny_bert(), dsee.Heads(1, score="nonsense"))


def test_a_score_that_forgets_a_layer_is_refused():
    register_score("forgetful")(lambda given: [torch.zeros(view.heads) for view in given.layers[1:]])
    with pytest.raises(dsee.InputError, match="forgetful"):
        dsee.prune(tiny_bert(), dsee.Heads(1, score="forgetful"))
