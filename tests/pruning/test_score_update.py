"""score="update": the sum of |s (U V + S2)|, as in section 3.3 of the DSEE paper."""

import pytest
import torch
from score_oracle import ALL_LINEARS, UNITS, assert_scores, by_hand, delta, score

import dsee
from conftest import adapted, tiny_bert


def test_a_head_is_the_update_of_its_query_and_value_rows(family):
    model = adapted(family())
    expected = by_hand(model, "heads", ["query", "value"], [], delta)
    assert min(min(layer) for layer in expected) > 0
    assert_scores(score(model, "update", "heads"), expected)


def test_the_other_projections_do_not_count_for_heads(family):
    model = adapted(family(), target_modules=ALL_LINEARS, support="random")
    expected = by_hand(model, "heads", ["query", "value"], [], delta)
    assert_scores(score(model, "update", "heads"), expected)


def test_a_neuron_is_the_update_of_its_row_and_column(family):
    model = adapted(family(), target_modules=ALL_LINEARS, support="random")
    assert_scores(score(model, "update", "neurons"), by_hand(model, "neurons", ["ffn_in"], ["ffn_out"], delta))


def test_one_updated_projection_is_enough():
    model = adapted(tiny_bert(), target_modules=["value", "intermediate.dense"])
    assert_scores(score(model, "update", "heads"), by_hand(model, "heads", ["value"], [], delta))
    assert_scores(score(model, "update", "neurons"), by_hand(model, "neurons", ["ffn_in"], [], delta))


def test_the_base_does_not_count():
    one, other = (adapted(tiny_bert(seed), target_modules=ALL_LINEARS, support="random") for seed in (0, 1))
    for unit in UNITS:
        scores = score(one, "update", unit), score(other, "update", unit)
        assert all(torch.equal(a, b) for a, b in zip(*scores, strict=True))


def test_alpha_counts():
    small, large = (adapted(tiny_bert(), alpha=alpha) for alpha in (8, 32))
    assert_scores(score(large, "update", "heads"), [4 * s for s in score(small, "update", "heads")])


def test_all_active_adapters_count_together():
    model = adapted(tiny_bert(), task_type=None)
    model.add_adapter("other", dsee.DseeConfig(r=2, n_sparse=5, init_weights=False))
    only = score(model, "update", "heads")
    assert_scores(only, by_hand(model, "heads", ["query", "value"], [], delta))
    model.base_model.set_adapter(["default", "other"])
    both = by_hand(model, "heads", ["query", "value"], [], lambda linear: delta(linear) + delta(linear, "other"))
    assert_scores(score(model, "update", "heads"), both)


@pytest.mark.parametrize("unit", UNITS)
def test_a_bare_model_has_nothing_to_rank(family, unit):
    with pytest.raises(dsee.OrderError, match="carry none"):
        score(family(), "update", unit)


@pytest.mark.parametrize(("targets", "unit"), [(["query", "value"], "neurons"), (["key", "dense"], "heads")])
def test_an_update_elsewhere_is_not_enough(targets, unit):
    with pytest.raises(dsee.OrderError, match="carry none"):
        score(adapted(tiny_bert(), target_modules=targets), "update", unit)


def test_the_layer_without_an_update_is_named():
    model = adapted(tiny_bert(), layers_to_transform=[0, 2], target_modules=["query", "value"])
    with pytest.raises(dsee.OrderError, match="layer 1 carry none"):
        score(model, "update", "heads")


def test_no_gradient_is_asked_for():
    model = adapted(tiny_bert(), target_modules=ALL_LINEARS, support="random")
    assert not any(values.requires_grad for unit in UNITS for values in score(model, "update", unit))


def test_an_update_that_was_never_tuned_ranks_nothing():
    model = adapted(tiny_bert(), init_weights=True)
    with pytest.raises(dsee.OrderError, match=r"still zero and ranks nothing. Tune first"):
        dsee.prune(model, dsee.Heads(1))
    assert dsee.history(model) == []
