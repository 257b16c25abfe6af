"""Widths that runtimes like: what remains is a multiple, where the rule or the size asks for it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dsee
from conftest import tiny_bert
from dsee.pruning import plan_for


@pytest.fixture(scope="module")
def wide():
    return tiny_bert(intermediate_size=132, num_hidden_layers=2)


def kept(model, rule):
    size = model.config.intermediate_size
    return [size - len(layer.neurons) for layer in plan_for(model, rule)]


@pytest.mark.parametrize(
    ("ratio", "stay"), [(0.25, 96), (0.5, 64), (0.4, 80), (0.03, 128), (0.92, 8), (0.97, 8), (0.99, 8)]
)
def test_a_ratio_on_a_wide_layer_leaves_the_nearest_multiple_of_8(wide, ratio, stay):
    assert kept(wide, dsee.Neurons(ratio)) == [stay, stay]


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(ratio=st.floats(0.04, 0.95), seed=st.integers(0, 20))
def test_any_ratio_over_all_layers_leaves_multiples_of_8(wide, ratio, seed):
    widths = kept(wide, dsee.Neurons(ratio, score="random", scope="global", seed=seed))
    assert all(width % 8 == 0 and width >= 8 for width in widths)
    # each layer is off by half of 8 at most, and a layer is never left without its 8
    assert sum(widths) == pytest.approx(264 * (1 - ratio), abs=2 * 4 + 8)


def test_a_count_is_met_exactly_whatever_the_width(wide):
    assert kept(wide, dsee.Neurons(5)) == [127, 127]
    assert sum(kept(wide, dsee.Neurons(5, scope="global"))) == 264 - 5


@pytest.mark.parametrize(("size", "stay"), [(124, 62), (127, 63), (128, 64), (132, 64)])
def test_rounding_begins_at_128_neurons(size, stay):
    assert kept(tiny_bert(intermediate_size=size, num_hidden_layers=1), dsee.Neurons(0.5)) == [stay]


def test_an_odd_ratio_on_a_narrow_layer_is_met_exactly():
    assert kept(tiny_bert(), dsee.Neurons(0.33)) == [27, 27, 27]


@pytest.mark.parametrize(
    ("amount", "multiple", "stay"), [(0.5, 16, 16), (10, 16, 32), (0.5, 1, 20), (3, 4, 36), (0.9, 8, 8), (0.1, 3, 36)]
)
def test_multiple_of_rounds_what_stays(amount, multiple, stay):
    assert kept(tiny_bert(), dsee.Neurons(amount, multiple_of=multiple)) == [stay] * 3


def test_multiple_of_1_switches_rounding_off(wide):
    assert kept(wide, dsee.Neurons(0.33, multiple_of=1)) == [88, 88]
    assert kept(wide, dsee.Neurons(0.34, multiple_of=1)) == [87, 87]


def test_the_rounding_takes_the_lowest_scores_too(wide):
    exact = plan_for(wide, dsee.Neurons(68))
    rounded = plan_for(wide, dsee.Neurons(0.5))
    assert rounded == exact


@pytest.mark.parametrize(
    ("size", "rule"),
    [
        (40, dsee.Neurons(0.25, multiple_of=64)),
        (40, dsee.Neurons(3, multiple_of=8)),
        (128, dsee.Neurons(0.01)),
        (40, dsee.Neurons(1, multiple_of=8, scope="global")),
    ],
)
def test_a_rule_that_rounding_reduces_to_nothing_is_refused(size, rule):
    model = tiny_bert(intermediate_size=size, num_hidden_layers=1)
    with pytest.raises(dsee.InputError, match="multiple"):
        plan_for(model, rule)


def test_heads_are_never_rounded():
    model = tiny_bert(hidden_size=264, num_attention_heads=132, num_hidden_layers=1)
    assert len(plan_for(model, dsee.Heads(0.25, score="weight"))[0].heads) == 33
