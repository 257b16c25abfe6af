"""The promise: a cut model gives the logits of one in which the same heads and neurons are zeroed."""

import pytest
import torch
from mask_oracle import ALL_LINEARS, UNEVEN, assert_equal_logits, assert_plan_matters, strong, zeroed

from conftest import batch, logits
from dsee.architectures import structure
from dsee.pruning import LayerPlan
from dsee.surgery import cut

UPDATES = {
    "bare": lambda base: base,
    "query and value": strong,
    "all linears": lambda base: strong(base, target_modules=ALL_LINEARS),
    "low rank only": lambda base: strong(base, target_modules=ALL_LINEARS, n_sparse=0),
    "sparse only": lambda base: strong(base, target_modules=ALL_LINEARS, r=0, n_sparse=200),
}


def with_attention(model, kind):
    model.set_attn_implementation(kind)
    assert model.config._attn_implementation == kind
    return model


CASES = [
    (update, attention, dtype)
    for update in ("bare", "query and value", "all linears")
    for attention in ("eager", "sdpa")
    for dtype in (torch.float32, torch.float64)
] + [(update, "sdpa", torch.float64) for update in ("low rank only", "sparse only")]


@pytest.mark.parametrize(("update", "attention", "dtype"), CASES, ids=str)
def test_cut_equals_mask(family, attention, dtype, update):
    model = UPDATES[update](with_attention(family(), attention)).to(dtype)
    masked = zeroed(model, UNEVEN)
    assert_plan_matters(model, masked)
    cut(model, UNEVEN)
    assert structure(model) == {"heads": [2, 4, 1], "neurons": [36, 1, 40]}
    assert_equal_logits(model, masked, dtype)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("length", [1, 2, 17])
def test_cut_equals_mask_for_other_batches(family, size, length):
    model = strong(family())
    masked = zeroed(model, UNEVEN)
    cut(model, UNEVEN)
    inputs = batch(size, length)
    torch.testing.assert_close(logits(model, inputs), logits(masked, inputs), rtol=0.0, atol=1e-5)


def test_cut_equals_mask_without_an_attention_mask(family):
    model = strong(family())
    masked = zeroed(model, UNEVEN)
    cut(model, UNEVEN)
    assert_equal_logits(model, masked, inputs={"input_ids": batch()["input_ids"]})


def test_padding_changes_no_logit_of_a_cut_model(family):
    model = family()
    cut(model, UNEVEN)
    short = batch(1, 6)
    ids = torch.nn.functional.pad(short["input_ids"], (0, 5), value=model.config.pad_token_id)
    padded = {"input_ids": ids, "attention_mask": torch.nn.functional.pad(short["attention_mask"], (0, 5))}
    torch.testing.assert_close(logits(model, padded), logits(model, short), rtol=0.0, atol=1e-5)


def test_the_comparison_notices_another_head(family):
    model = family()
    masked = zeroed(model, [LayerPlan(heads=(1,)), LayerPlan(), LayerPlan()])
    cut(model, [LayerPlan(heads=(2,)), LayerPlan(), LayerPlan()])
    with pytest.raises(AssertionError, match="not close"):
        assert_equal_logits(model, masked)


def test_an_empty_plan_changes_nothing(family):
    model = strong(family())
    before = logits(model)
    cut(model, [LayerPlan()] * 3)
    assert torch.equal(logits(model), before)
    assert structure(model) == {"heads": [4, 4, 4], "neurons": [40, 40, 40]}


def test_two_cuts_equal_one(family):
    once, twice = strong(family()), strong(family())
    cut(once, [LayerPlan((0, 2), (3, 7, 8))] * 3)
    cut(twice, [LayerPlan((2,), (7,))] * 3)
    cut(twice, [LayerPlan((0,), (3, 7))] * 3)  # neuron 8 has moved up to 7
    assert torch.equal(logits(once), logits(twice))
