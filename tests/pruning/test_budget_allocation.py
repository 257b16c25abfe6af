"""Spending a budget: never too much, as near as the steps allow, and never less for more."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dsee
from dsee.pruning import allocation
from dsee.pruning.allocation import Chain, allocate


@st.composite
def chains(draw, whole=True):
    """Layers with a few removals each, in any relation of loss to saving; some save nothing."""
    made = []
    for _ in range(draw(st.integers(1, 4))):
        length = draw(st.integers(1, 5))
        lost = [0, *itertools.accumulate(draw(st.lists(st.integers(0, 50), min_size=length, max_size=length)))]
        number = st.integers(0, 20) if whole else st.floats(0, 20)
        savings = draw(st.lists(number, min_size=length, max_size=length))
        removals = [0, *itertools.accumulate(draw(st.lists(st.integers(1, 8), min_size=length, max_size=length)))]
        cost = [1 + sum(savings[i:]) for i in range(length + 1)]
        made.append(Chain(removals, np.array(lost, dtype=float), np.array(cost, dtype=float)))
    return made


def spent(made, counts):
    return sum(float(chain.cost[chain.removals.index(count)]) for chain, count in zip(made, counts, strict=True))


def given_up(made, counts):
    return sum(float(chain.lost[chain.removals.index(count)]) for chain, count in zip(made, counts, strict=True))


def targets(made):
    least = sum(float(chain.cost[-1]) for chain in made)
    return least, sum(float(chain.cost[0]) for chain in made)


@given(st.booleans().flatmap(lambda whole: chains(whole)), st.floats(0, 1))
def test_never_overshoots_and_puts_back_all_that_fits(made, share):
    least, most = targets(made)
    target = least + share * (most - least)
    counts = allocate(made, target, most, "asked")
    assert spent(made, counts) <= target
    for index, (chain, count) in enumerate(zip(made, counts, strict=True)):
        if count:
            back = [*counts]
            back[index] = chain.removals[chain.removals.index(count) - 1]
            assert spent(made, back) > target


@given(chains(), st.floats(0, 1))
def test_no_other_choice_gives_up_less(made, share):
    """Against every combination there is."""
    least, most = targets(made)
    target = least + share * (most - least)
    found = given_up(made, allocate(made, target, most, "asked"))
    choices = itertools.product(*(chain.removals for chain in made))
    assert found == min(given_up(made, counts) for counts in choices if spent(made, counts) <= target)


@given(chains(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_budget_never_gives_up_more(made, one, other):
    least, most = targets(made)
    small, large = (least + share * (most - least) for share in sorted((one, other)))
    assert given_up(made, allocate(made, large, most, "a")) <= given_up(made, allocate(made, small, most, "a"))


def test_a_removal_that_saves_nothing_is_left_out():
    plateau = Chain([0, 1, 2], np.array([0.0, 1.0, 2.0]), np.array([10.0, 10.0, 4.0]))
    sloping = Chain([0, 1], np.array([0.0, 5.0]), np.array([10.0, 5.0]))
    assert allocate([plateau, sloping], 15.0, 20.0, "asked") == [2, 0]
    assert allocate([plateau, sloping], 20.0, 20.0, "asked") == [0, 0]


def test_what_is_gone_comes_back_only_into_what_is_left_over():
    """A chain that starts with a removal keeps it unless there is room at the end."""
    gone = Chain([0, 1, 2], np.array([0.0, 0.0, 9.0]), np.array([10.0, 6.0, 2.0]), start=1)
    other = Chain([0, 1], np.array([0.0, 1.0]), np.array([10.0, 5.0]))
    assert allocate([gone, other], 12.0, 20.0, "asked") == [1, 1]
    assert allocate([gone, other], 15.0, 20.0, "asked") == [0, 1]


@given(chains(False), st.floats(0, 1))
def test_rounding_however_coarse_never_overshoots(made, share):
    least, most = targets(made)
    target = least + share * (most - least)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation, "CELLS", 5)
        assert spent(made, allocate(made, target, most, "asked")) <= target


def test_costs_without_a_common_factor_are_rounded_up():
    made = [Chain([0, 1, 2], np.array([0.0, 1.0, 3.0]), np.array([1.0, 0.7, 0.3]) * np.pi) for _ in range(3)]
    counts = allocate(made, 2.11 * np.pi, 3 * np.pi, "asked")
    assert spent(made, counts) <= 2.11 * np.pi
    assert given_up(made, counts) == 3.0


def test_what_cannot_be_met_is_refused_with_the_least_that_can():
    chain = Chain([0, 1], np.array([0.0, 1.0]), np.array([10.0, 4.0]))
    with pytest.raises(dsee.InputError, match=r"Budget\(flops=0.3\) cannot be met.*still cost 40.0%"):
        allocate([chain], 3.0, 10.0, "Budget(flops=0.3)")
