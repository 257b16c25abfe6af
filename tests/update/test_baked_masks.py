"""A base masked from outside its weight is baked in on request, and then nothing is lost: not the zeros, not dW."""

import pytest
import torch
from peft import PeftModel
from torch.nn.utils import parametrizations, parametrize, prune

import dsee
from conftest import adapted, logits, tiny_bert
from dsee.masks import get_mask, masked_linears
from dsee.update.layer import update_layers
from update.models import close, scrambled, tiny_gpt2, train_step

QUERY = "bert.encoder.layer.1.attention.self.query"
VALUE = "bert.encoder.layer.1.attention.self.value"
OTHER = "bert.encoder.layer.0.output.dense"


class Masked(torch.nn.Module):
    """A mask as a parametrization: what many sparse-training scripts do."""

    def __init__(self, weight):
        super().__init__()
        self.register_buffer("mask", weight.abs() >= weight.abs().median())

    def forward(self, weight):
        return weight * self.mask


def by_prune(linear):
    prune.l1_unstructured(linear, "weight", 0.5)


def by_parametrization(linear):
    parametrize.register_parametrization(linear, "weight", Masked(linear.weight.detach()))


HOW = pytest.mark.parametrize("mask", [by_prune, by_parametrization])


def masked_bert(mask, names=(QUERY, VALUE, OTHER)):
    base = tiny_bert()
    for name in names:
        mask(base.get_submodule(name))
    return base


@HOW
def test_without_a_request_it_is_refused_and_the_remedy_named(mask):
    with pytest.raises(dsee.InputError, match=rf"{QUERY}: .*bake_masks=True.*dsee\.bake_masks\(model\)"):
        adapted(masked_bert(mask))


@HOW
def test_baking_changes_no_logit_and_leaves_ordinary_weights(mask):
    base = masked_bert(mask)
    before = logits(base)
    zeros = {name: base.get_submodule(name).weight.detach() == 0 for name in (QUERY, VALUE, OTHER)}
    assert dsee.bake_masks(base) == [OTHER, QUERY, VALUE]
    assert torch.equal(logits(base), before)
    assert set(base.state_dict()) == set(tiny_bert().state_dict())
    assert set(masked_linears(base)) == {QUERY, VALUE, OTHER}
    for name, zero in zeros.items():
        assert 0.4 < zero.float().mean() < 0.6
        assert torch.equal(get_mask(base.get_submodule(name)), ~zero)
    assert dsee.bake_masks(base) == []


def test_a_kept_weight_that_is_zero_stays_kept():
    base = tiny_bert()
    linear = base.get_submodule(QUERY)
    mask = torch.ones(32, 32)
    mask[0] = 0
    linear.weight.data[5, 5] = 0.0
    prune.custom_from_mask(linear, "weight", mask)
    dsee.bake_masks(base)
    assert torch.equal(get_mask(linear), mask.bool())


def test_conv1d_keeps_its_mask_in_out_in_orientation():
    base = tiny_gpt2()
    linear = base.transformer.h[0].attn.c_attn
    prune.random_unstructured(linear, "weight", 0.3)
    expected = (linear.weight != 0).T
    before = logits(base)
    dsee.bake_masks(base)
    assert torch.equal(get_mask(linear), expected)
    assert torch.equal(logits(base), before)


def test_a_bias_is_baked_in_too():
    base = tiny_bert()
    linear = base.get_submodule(QUERY)
    by_prune(linear)
    prune.random_unstructured(linear, "bias", 0.5)
    before = logits(base)
    dsee.bake_masks(base)
    assert {"weight", "bias"} == set(linear._parameters)
    assert torch.equal(logits(base), before)


@pytest.mark.parametrize("frozen", [False, True])
def test_what_learned_before_learns_after(frozen):
    base = masked_bert(by_prune).requires_grad_(not frozen)
    dsee.bake_masks(base)
    assert base.get_submodule(QUERY).weight.requires_grad is not frozen


def test_a_parametrization_without_zeros_leaves_no_mask():
    base = tiny_bert()
    parametrizations.weight_norm(base.get_submodule(QUERY))
    before = logits(base)
    assert dsee.bake_masks(base) == [QUERY]
    assert masked_linears(base) == {}
    torch.testing.assert_close(logits(base), before, **close())


def test_an_old_weight_norm_is_still_refused_by_name():
    base = tiny_bert()
    torch.nn.utils.spectral_norm(base.get_submodule(QUERY))
    with pytest.raises(dsee.InputError, match=r"remove_spectral_norm\(module\)"):
        adapted(base, bake_masks=True)


@HOW
def test_on_request_the_update_goes_on_and_is_not_lost_by_a_merge(mask):
    base = masked_bert(mask)
    before = logits(base)
    model = adapted(base, bake_masks=True, init_weights=True)
    assert torch.equal(logits(model), before)
    train_step(scrambled(model).train())
    tuned = logits(model.eval())
    assert not torch.allclose(tuned, before, atol=0.01)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), tuned, **close())


@HOW
def test_a_masked_merge_keeps_every_zero_and_the_update_elsewhere(mask):
    model = scrambled(adapted(masked_bert(mask), bake_masks=True))
    deltas = {name: layer.get_delta_weight("default") for name, layer in update_layers(model)}
    weights = {name: layer.base_weight().clone() for name, layer in update_layers(model)}
    zeros = {name: weight == 0 for name, weight in weights.items()}
    with pytest.warns(UserWarning, match="every zero kept"):
        merged = dsee.merge(model, policy="masked")
    for name, weight in weights.items():
        now = merged.get_submodule(name.removeprefix("base_model.model.")).weight.detach()
        assert torch.equal(now == 0, zeros[name])
        expected = torch.where(zeros[name], torch.zeros(()), weight + deltas[name])
        torch.testing.assert_close(now, expected, rtol=0, atol=1e-6)


def test_the_request_is_remembered_with_the_adapter(tmp_path):
    model = adapted(masked_bert(by_prune), bake_masks=True)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(masked_bert(by_prune), tmp_path).eval()), expected)


def test_the_mask_goes_into_no_adapter_file_and_no_state_dict():
    model = adapted(masked_bert(by_prune), bake_masks=True)
    assert not [name for name in model.state_dict() if "mask" in name]
