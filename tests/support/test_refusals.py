"""What cannot be chosen is refused with the reason and the remedy."""

import pytest
import torch

import dsee
from dsee import support
from support.given import choose

WEIGHT = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("wrong", "meant"), [("magnitud", "magnitude"), ("grebsom", "grebsmo"), ("randm", "random")])
def test_an_unknown_rule_is_refused_by_the_config_and_the_nearest_is_named(wrong, meant):
    with pytest.raises(dsee.InputError, match=f"Did you mean '{meant}'"):
        dsee.DseeConfig(support=wrong)


def test_an_unknown_rule_is_refused_by_choose_and_all_known_are_listed():
    with pytest.raises(dsee.InputError) as caught:
        support.choose("xyz", WEIGHT, 1, rank=1, seed=0)
    assert all(rule in str(caught.value) for rule in support.rules())
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize("rule", sorted(support.rules()))
def test_more_positions_than_weights_are_refused_with_the_numbers(rule):
    with pytest.raises(dsee.InputError, match=r"n_sparse=21 is more than the 20 weights of a 4 x 5 matrix.*pattern"):
        choose(rule, WEIGHT, 21, rank=1, seed=0)


@pytest.mark.parametrize("rule", sorted(support.rules()))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_refused(rule, value):
    broken = WEIGHT.clone()
    broken[2, 3] = value
    with pytest.raises(dsee.InputError, match="NaN or infinity"):
        choose(rule, broken, 3, rank=1, seed=0)


@pytest.mark.parametrize("seed", [-1, 2**32 - 1, 2**40, -(2**40)])
def test_every_whole_number_is_a_seed(seed):
    from conftest import adapted, tiny_bert

    model = adapted(tiny_bert(), seed=seed, support="random")
    assert model.peft_config["default"].seed == seed


def test_a_rule_by_gradients_without_them_says_where_they_come_from():
    with pytest.raises(dsee.InputError, match=r"dsee.choose_support\(model, calibration="):
        support.choose("gradient", WEIGHT, 3, rank=1, seed=0)


def test_gradients_that_are_not_finite_are_refused():
    with pytest.raises(dsee.InputError, match="gradient holds NaN or infinity"):
        support.choose("gradient", WEIGHT, 3, rank=1, seed=0, gradient=torch.full((4, 5), float("nan")))


@pytest.mark.parametrize("support_name", ["magnitude", "gradient"])
def test_positions_beside_a_rule_are_refused_by_the_config(support_name):
    with pytest.raises(dsee.InputError, match="Set support='explicit'"):
        dsee.DseeConfig(support=support_name, positions={"query": [1]})


@pytest.mark.parametrize("wrong", [3, "query", None, {"a": 1}])
def test_positions_that_are_no_list_are_refused_by_the_config(wrong):
    with pytest.raises(dsee.InputError, match="has to be a list"):
        dsee.DseeConfig(support="explicit", positions={"query": wrong})
