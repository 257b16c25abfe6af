"""Zeros stay zero through training, merging and unmerging; what counts is the mask, not the zeros of W."""

import re
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dsee
from conftest import adapted, logits, tiny_bert
from cut_families import answer, build, task_type
from dsee.masks import oriented
from dsee.pruning import get_mask, hold, masked_linears, set_mask
from dsee.pruning.blocks import block_sums
from dsee.pruning.targets import mask_targets
from update.models import close, dense_update, scrambled, train_step

RULES = {
    "weights": dsee.Weights(0.6, score="weight"),
    "blocks": dsee.Blocks(0.5, score="weight"),
    "2:4": dsee.NofM(2, 4, score="weight"),
    "1:8": dsee.NofM(1, 8, score="weight"),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
TARGETS = {"gpt2": ["c_attn", "c_fc"], "bert": ["query", "intermediate.dense"], "llama": ["q_proj", "down_proj"]}


def silently(function, *args, **kwargs):
    with warnings.catch_warnings():
        # merging remarks what happens to the update at the zeros; other tests look at that
        warnings.simplefilter("ignore")
        return function(*args, **kwargs)


def pruned(name, rule, dtype=torch.float32):
    model = adapted(build(name).to(dtype), task_type=task_type(name), target_modules=TARGETS[name], support="random")
    dsee.prune(scrambled(model), rule)
    return model


def masks_of(model):
    return {target.name: target.mask for target in mask_targets(model)}


def assert_zero_where_masked(model, masks):
    for target in mask_targets(model):
        bits = oriented(target.linear)[~masks[target.name]]
        # not minus zero either: a kept file compares bytes
        assert not bits.any()
        assert not torch.signbit(bits).any()


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(TARGETS)), st.sampled_from(sorted(RULES)), st.sampled_from(DTYPES), st.integers(0, 3))
def test_every_zero_and_every_pattern_survives_a_masked_merge(name, rule, dtype, seed):
    model = scrambled(pruned(name, RULES[rule], dtype), seed=seed)
    masks = masks_of(model)
    merged = silently(dsee.merge, model)
    assert all(torch.equal(masks_of(merged)[n], mask) for n, mask in masks.items())
    assert_zero_where_masked(merged, masks)
    for target in mask_targets(merged):
        assert oriented(target.linear).dtype == dtype
        if rule == "blocks":
            assert set(block_sums(target.mask.to(torch.int32), (4, 1)).unique().tolist()) == {0, 4}
        elif ":" in rule:
            n, m = map(int, rule.split(":"))
            assert bool(((oriented(target.linear) != 0).view(target.shape[0], -1, m).sum(2) <= n).all())


@pytest.mark.parametrize("rule", ["weights", "blocks", "2:4"])
def test_zeros_stay_zero_through_training(rule):
    model = pruned("bert", RULES[rule])
    masks, optimizer = masks_of(model), None
    for seed in range(3):
        optimizer = train_step(model, optimizer, seed=seed)
    assert_zero_where_masked(model, masks)
    assert all(torch.equal(masks_of(model)[n], mask) for n, mask in masks.items())


def test_a_trained_base_is_held_to_its_mask():
    model = tiny_bert()
    dsee.prune(model, RULES["weights"])
    masks = masks_of(model)
    train_step(model)
    assert any(bool(oriented(t.linear)[~masks[t.name]].any()) for t in mask_targets(model)), "nothing to hold"
    hold(model)
    assert_zero_where_masked(model, masks)


def test_the_masked_merge_adds_the_update_to_what_is_kept_alone():
    model = pruned("bert", RULES["weights"])
    expected = {}
    for target in mask_targets(model):
        delta = dense_update(target.linear) if target.has_update else torch.zeros(target.shape, dtype=torch.float64)
        expected[target.name] = torch.where(target.mask, target.weight.double() + delta, 0.0)
    merged = silently(dsee.merge, model)
    eps = torch.finfo(torch.float32).eps
    for target in mask_targets(merged):
        found = target.weight.double()
        torch.testing.assert_close(found, expected[target.name], rtol=4 * eps, atol=32 * eps)


def test_a_kept_weight_that_is_zero_receives_its_update_and_stays_kept():
    base = tiny_bert()
    query = base.bert.encoder.layer[0].attention.self.query
    query.weight.data[:, :16] = 0.0
    mask = torch.ones(32, 32, dtype=torch.bool)
    mask[:, :8] = False
    set_mask(query, mask)
    merged = silently(dsee.merge, scrambled(adapted(base)))
    weight = merged.bert.encoder.layer[0].attention.self.query.weight
    assert not weight[:, :8].any()
    assert bool((weight[:, 8:16] != 0).all())
    assert torch.equal(get_mask(merged.bert.encoder.layer[0].attention.self.query), mask)


def test_a_mask_of_very_few_zeros_counts():
    # without a mask so few zeros are taken for chance
    base = tiny_bert()
    query = base.bert.encoder.layer[0].attention.self.query
    mask = torch.ones(32, 32, dtype=torch.bool)
    mask[3, 5] = False
    set_mask(query, mask)
    with pytest.warns(UserWarning, match="every zero kept"):
        merged = dsee.merge(scrambled(adapted(base)))
    assert merged.bert.encoder.layer[0].attention.self.query.weight[3, 5] == 0


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_the_share_of_the_update_that_is_dropped_is_said(name):
    model = pruned(name, RULES["weights"])
    lost = total = 0.0
    for target in mask_targets(model):
        if target.has_update:
            delta = target.linear.get_delta_weight("default")
            delta = delta.T if target.linear.transposed else delta
            lost, total = lost + float(delta[~target.mask].square().sum()), total + float(delta.square().sum())
    with pytest.warns(UserWarning, match=re.escape(f"{(lost / total) ** 0.5:.1%} of the update's norm")):
        dsee.merge(model)


def test_the_dense_merge_is_exact_and_gives_the_masks_of_merged_matrices_up():
    model = pruned("bert", RULES["weights"])
    before = logits(model)
    with pytest.warns(UserWarning, match="zeros fell"):
        merged = dsee.merge(model, policy="dense")
    torch.testing.assert_close(logits(merged), before, **close())
    left = masked_linears(merged)
    assert len(left) == 12
    assert not any(name.endswith(("query", "intermediate.dense")) for name in left)


def test_the_error_policy_refuses_and_keeps_everything():
    model = pruned("bert", RULES["blocks"])
    masks = masks_of(model)
    with pytest.raises(dsee.OrderError, match="6 matrices hold zeros"):
        dsee.merge(model, policy="error")
    assert all(torch.equal(masks_of(model)[n], mask) for n, mask in masks.items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_are_zero_again_after_peft_merges_and_unmerges(dtype):
    model = pruned("bert", RULES["weights"], dtype)
    masks = masks_of(model)
    model.merge_adapter()
    model.unmerge_adapter()
    assert_zero_where_masked(model, masks)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_masks_change_no_logit_by_themselves(name):
    """The zeros are in the weight: a model that forgets its bits computes the same."""
    model = pruned(name, RULES["2:4"])
    before = answer(model, name)
    for linear in list(masked_linears(model).values()):
        set_mask(linear, None)
    assert torch.equal(answer(model, name), before)
