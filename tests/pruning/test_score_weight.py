"""score="weight" and "weight+update": the sum of |W| or |W + dW| over all the weights that would go."""

import pytest
import torch
from score_oracle import ALL_LINEARS, UNITS, assert_scores, by_hand, delta, score, weight

import dsee
from conftest import adapted, tiny_bert

ROWS = {"heads": ["query", "key", "value"], "neurons": ["ffn_in"]}
COLUMNS = {"heads": ["output"], "neurons": ["ffn_out"]}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", ["weight", "weight+update"])
def test_a_bare_model(family, name, unit):
    model = family()
    assert_scores(score(model, name, unit), by_hand(model, unit, ROWS[unit], COLUMNS[unit], weight))


@pytest.mark.parametrize("unit", UNITS)
def test_weight_leaves_the_update_out(family, unit):
    model = adapted(family(), target_modules=ALL_LINEARS, support="random")
    assert_scores(score(model, "weight", unit), by_hand(model, unit, ROWS[unit], COLUMNS[unit], weight))
    plain = score(family(), "weight", unit)
    assert all(torch.equal(a, b) for a, b in zip(score(model, "weight", unit), plain, strict=True))


@pytest.mark.parametrize("unit", UNITS)
def test_weight_and_update_ranks_what_a_merge_would_give(family, unit):
    model = adapted(family(), target_modules=ALL_LINEARS, support="random")

    def merged(linear):
        return weight(linear) + delta(linear)

    expected = by_hand(model, unit, ROWS[unit], COLUMNS[unit], merged)
    actual = score(model, "weight+update", unit)
    assert_scores(actual, expected)
    differs = zip(actual, score(model, "weight", unit), strict=True)
    assert all(not torch.allclose(a, b, rtol=1e-4) for a, b in differs)


@pytest.mark.parametrize("name", ["weight", "weight+update"])
@pytest.mark.parametrize("unit", UNITS)
def test_a_part_without_weight_scores_zero(name, unit):
    model = tiny_bert()
    first = model.bert.encoder.layer[0]
    with torch.no_grad():
        for part in (first.attention.self.query, first.attention.self.key, first.attention.self.value):
            part.weight[8:16] = 0.0
        first.attention.output.dense.weight[:, 8:16] = 0.0
        first.intermediate.dense.weight[1] = 0.0
        first.output.dense.weight[:, 1] = 0.0
    scores = score(model, name, unit)[0]
    assert scores[1] == 0.0
    assert (scores == 0.0).sum() == 1


def test_half_precision_weights_are_summed_in_full():
    model = tiny_bert()
    expected = score(model, "weight", "neurons")
    # 2**-8 is the rounding of a bfloat16 weight; the sum adds none of its own
    for got, want in zip(score(model.bfloat16(), "weight", "neurons"), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=2**-8, atol=0.0)


def test_a_broken_weight_is_refused_with_its_layer():
    model = tiny_bert()
    with torch.no_grad():
        model.bert.encoder.layer[2].attention.self.key.weight[3, 3] = float("nan")
    with pytest.raises(dsee.InputError, match="NaN or infinite in layer 2"):
        dsee.prune(model, dsee.Heads(1, score="weight"))
    assert dsee.prune(model, dsee.Neurons(1)).after["neurons"] == [39, 39, 39]
