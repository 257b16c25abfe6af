"""merge_adapter, unmerge_adapter and merge_and_unload: dW goes into W and comes out again."""

import pytest
import torch

import dsee
from conftest import adapted, logits, tiny_bert
from dsee.update.layer import update_layers
from update.models import SUPPORTS, close, dense_update, scrambled, two_adapters


def weights(model):
    return {name: layer.get_base_layer().weight.detach().clone() for name, layer in update_layers(model)}


@pytest.mark.parametrize("parts", [{}, {"r": 0}, {"n_sparse": 0}], ids=["both", "sparse", "low rank"])
def test_dw_equals_the_dense_oracle(parts):
    model = adapted(tiny_bert(), **parts)
    for _, layer in update_layers(model):
        ours = layer.get_delta_weight("default")
        assert ours.shape == layer.get_base_layer().weight.shape
        torch.testing.assert_close(ours.double(), dense_update(layer), rtol=0, atol=4 * 8 * torch.finfo().eps)


@pytest.mark.parametrize("support", SUPPORTS)
def test_the_forward_equals_a_base_with_the_dense_update_added(support):
    model, base = adapted(tiny_bert(), support=support, target_modules=["query", "intermediate.dense"]), tiny_bert()
    for name, layer in update_layers(model):
        base.get_submodule(name.removeprefix("base_model.model.")).weight.data += dense_update(layer).float()
    torch.testing.assert_close(logits(model), logits(base), **close())


def test_merging_changes_no_logit_and_unmerging_restores_the_weights(family):
    model = scrambled(adapted(family()))
    before, original = logits(model), weights(model)
    model.merge_adapter()
    assert all(layer.merged for _, layer in update_layers(model))
    assert any(not torch.equal(original[name], weight) for name, weight in weights(model).items())
    torch.testing.assert_close(logits(model), before, **close())
    model.unmerge_adapter()
    assert not any(layer.merged for _, layer in update_layers(model))
    for name, weight in weights(model).items():
        torch.testing.assert_close(weight, original[name], rtol=0, atol=4 * torch.finfo(weight.dtype).eps)
    torch.testing.assert_close(logits(model), before, **close())


def test_merge_and_unload_gives_a_plain_model_with_the_same_logits(family):
    model = scrambled(adapted(family()))
    before = logits(model)
    merged = model.merge_and_unload(safe_merge=True)
    assert type(merged) is type(family())
    assert set(merged.state_dict()) == set(family().state_dict())
    torch.testing.assert_close(logits(merged), before, **close())


def test_the_chosen_adapter_is_merged_and_no_other():
    model = two_adapters(tiny_bert())
    model.set_adapter("second")
    expected = logits(model)
    model.set_adapter("default")
    model.merge_adapter(["second"])
    assert all(layer.merged_adapters == ["second"] for _, layer in update_layers(model))
    model.unmerge_adapter()
    model.set_adapter("second")
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, **close())


def test_a_merged_update_does_not_count_twice():
    model = scrambled(adapted(tiny_bert()))
    before = logits(model)
    model.merge_adapter()
    with pytest.warns(UserWarning, match="[Aa]ll adapters are already merged"):
        model.merge_adapter()
    torch.testing.assert_close(logits(model), before, **close())


def test_disabling_a_merged_update_gives_the_base():
    model = scrambled(adapted(tiny_bert()))
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(tiny_bert()), **close())


@pytest.mark.parametrize("part", ["dsee_U", "dsee_S"])
def test_a_safe_merge_refuses_values_that_are_not_finite(part):
    model = adapted(tiny_bert())
    _, layer = update_layers(model)[-1]
    getattr(layer, part)["default"].weight.data.view(-1)[0] = float("nan")
    with pytest.raises(dsee.ArtifactError, match="'default' gives NaN or infinity"):
        model.merge_and_unload(safe_merge=True)


def test_a_refused_merge_leaves_every_weight_as_it_was():
    model = adapted(tiny_bert())
    original = weights(model)
    _, layer = update_layers(model)[-1]
    layer.dsee_U["default"].weight.data[0, 0] = float("nan")
    with pytest.raises(dsee.ArtifactError):
        dsee.merge(model)
    kept = weights(model)
    assert set(kept) == set(original)
    assert all(torch.equal(kept[name], weight) for name, weight in original.items())
