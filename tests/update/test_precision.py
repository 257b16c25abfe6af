"""Bases in other dtypes: the update stays in full precision, positions stay integers."""

import pytest
import torch
from peft import PeftModel

from conftest import adapted, batch, logits, tiny_bert
from dsee.update.layer import update_layers
from update.models import close, dense_update, scrambled, train_step


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_keeps_a_full_precision_update(dtype):
    model = adapted(tiny_bert().to(dtype))
    for _, layer in update_layers(model):
        assert layer.get_base_layer().weight.dtype == dtype
        for part in (layer.dsee_U, layer.dsee_V, layer.dsee_S):
            assert part["default"].weight.dtype == torch.float32
        assert layer.dsee_S["default"].indices.dtype == torch.int32
    assert logits(model).dtype == dtype


@pytest.mark.parametrize("parts", [{}, {"r": 0}, {"n_sparse": 0}], ids=["both", "sparse", "low rank"])
def test_on_a_bfloat16_base_only_the_result_is_rounded(parts):
    _, layer = update_layers(adapted(tiny_bert().to(torch.bfloat16), **parts))[0]
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    base = layer.get_base_layer()(x).double()
    update = x.double() @ dense_update(layer).T
    with torch.no_grad():
        ours = layer(x)
    assert ours.dtype == torch.bfloat16
    # the base's result is rounded already; the update is rounded once, and their sum once
    bound = torch.finfo(torch.bfloat16).eps * (update.abs() + (base + update).abs()) / 2
    assert bool(((ours.double() - base - update).abs() <= 1.01 * bound + 64 * torch.finfo(torch.float32).eps).all())


def test_training_on_a_bfloat16_base_lowers_the_loss_and_moves_all_parts():
    model = adapted(tiny_bert().to(torch.bfloat16), init_weights=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    losses = []
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(20):
        train_step(model, optimizer)
        losses.append(float(model(**batch(labels=True)).loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters() if p.requires_grad)


def test_casting_the_whole_model_leaves_the_positions_integers():
    model = adapted(tiny_bert()).to(torch.bfloat16)
    assert all(layer.dsee_S["default"].indices.dtype == torch.int32 for _, layer in update_layers(model))
    assert logits(model).isfinite().all()


def test_merging_into_a_bfloat16_base_rounds_once():
    model = scrambled(adapted(tiny_bert().to(torch.bfloat16)))
    exact = {
        name: (layer.get_base_layer().weight.double() + layer.get_delta_weight("default").double())
        for name, layer in update_layers(model)
    }
    merged = model.merge_and_unload(safe_merge=True)
    for name, weight in exact.items():
        ours = merged.get_submodule(name.removeprefix("base_model.model.")).weight
        assert ours.dtype == torch.bfloat16
        unit = torch.finfo(torch.bfloat16).eps * weight.abs().clamp(min=2**-10)
        assert bool(((ours.double() - weight).abs() <= 0.51 * unit).all())


def test_a_double_precision_base_merges_in_double_precision():
    model = scrambled(adapted(tiny_bert().double()))
    before = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload()), before, **close(torch.float64))


def test_a_double_precision_base_is_restored_in_double_precision():
    model = scrambled(adapted(tiny_bert().double()))
    original = [layer.get_base_layer().weight.clone() for _, layer in update_layers(model)]
    model.merge_adapter()
    model.unmerge_adapter()
    for (_, layer), weight in zip(update_layers(model), original, strict=True):
        atol = 4 * torch.finfo(torch.float64).eps
        torch.testing.assert_close(layer.get_base_layer().weight, weight, rtol=0, atol=atol)


def test_an_update_tuned_on_bfloat16_loads_without_loss(tmp_path):
    model = scrambled(adapted(tiny_bert().to(torch.bfloat16)))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert().to(torch.bfloat16), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("parts", [{}, {"r": 0}], ids=["both", "sparse"])
def test_autocast_trains_with_gradients_in_full_precision(parts):
    model = adapted(tiny_bert(), **parts)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch(labels=True)).loss
    loss.backward()
    exact = adapted(tiny_bert(), **parts)
    exact(**batch(labels=True)).loss.backward()
    for (_, ours), (_, theirs) in zip(update_layers(model), update_layers(exact), strict=True):
        mine, other = (layer.dsee_S["default"].weight.grad for layer in (ours, theirs))
        assert mine.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(mine, other, dim=0) > 0.99
