"""Which ones go: the lowest scores, over a layer or over all, and the same ones every time."""

import importlib

import pytest
import torch

import dsee
from conftest import tiny_bert
from dsee.pruning import LayerPlan, plan_for, register_score

GIVEN = {
    "heads": [[3.0, 1.0, 2.0, 4.0], [0.4, 0.3, 0.2, 0.1], [9.0, 9.0, 9.0, 9.0]],
    "neurons": [[float(i) for i in range(40)], [float(-i) for i in range(40)], [100.0 + i for i in range(40)]],
}


@pytest.fixture(autouse=True)
def _given_score(monkeypatch):
    module = importlib.import_module("dsee.pruning.scores")
    monkeypatch.setattr(module, "_SCORES", dict(module._SCORES))

    @register_score("given")
    def given(asked):
        return [torch.tensor(numbers) for numbers in GIVEN[asked.unit]]


def test_the_lowest_of_each_layer_go():
    plan = plan_for(tiny_bert(), dsee.Heads(2, score="given"))
    assert [layer.heads for layer in plan] == [(1, 2), (2, 3), (0, 1)]


def test_the_lowest_of_all_layers_go_and_the_best_of_each_stays():
    plan = plan_for(tiny_bert(), dsee.Heads(4, score="given", scope="global"))
    assert [layer.heads for layer in plan] == [(1,), (1, 2, 3), ()]


def test_a_layer_that_ranks_lowest_gives_all_but_its_best():
    plan = plan_for(tiny_bert(), dsee.Neurons(42, score="given", scope="global"))
    # all of layer 1 but neuron 0, which is its best; then the lowest of layer 0
    assert plan == [LayerPlan(neurons=(0, 1, 2)), LayerPlan(neurons=tuple(range(1, 40))), LayerPlan()]


def test_the_lower_index_goes_among_equals():
    model = tiny_bert()
    assert plan_for(model, dsee.Heads(3, score="given"))[2].heads == (0, 1, 2)
    assert plan_for(model, dsee.Heads(7, score="given", scope="global"))[2].heads == (0,)


@pytest.mark.parametrize("score", ["weight", "random", "given"])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("rule", [dsee.Heads, dsee.Neurons])
def test_the_same_rule_makes_the_same_choice(score, scope, rule):
    plans = [plan_for(tiny_bert(), rule(0.5, score=score, scope=scope, seed=3)) for _ in range(2)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_choice_does_not_depend_on_threads(threads):
    expected = plan_for(tiny_bert(), dsee.Neurons(0.5))
    torch.set_num_threads(threads)
    assert plan_for(tiny_bert(), dsee.Neurons(0.5)) == expected


def test_another_seed_makes_another_random_choice():
    plans = [plan_for(tiny_bert(), dsee.Neurons(0.5, score="random", seed=seed)) for seed in range(2)]
    assert plans[0] != plans[1]


def test_the_choice_does_not_touch_the_global_random_state():
    torch.manual_seed(7)
    expected = torch.rand(3)
    model = tiny_bert()
    torch.manual_seed(7)
    plan_for(model, dsee.Neurons(0.5, score="random"))
    assert torch.equal(torch.rand(3), expected)
