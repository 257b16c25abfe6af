"""A base with its update beside it: loads as a PeftModel again, and tuning can go on."""

import pytest
import torch
from artifact_tools import bytes_of, unevenly_cut
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import dsee
from conftest import adapted, batch, logits, tiny_bert
from dsee.artifact import read_manifest

CONFIG = {"task_type": "SEQ_CLS", "r": 4, "n_sparse": 9, "init_weights": False}


def _two_adapters():
    model = adapted(unevenly_cut(tiny_bert()))
    torch.manual_seed(2)
    model.add_adapter("second", dsee.DseeConfig(**CONFIG))
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_update_beside_its_base_comes_back_to_the_last_bit(family, dtype, tmp_path):
    model = adapted(unevenly_cut(family().to(dtype)), target_modules=None)
    out = dsee.save(model, tmp_path / "out")
    loaded = dsee.load(out)
    assert read_manifest(out).kind == "adapted"
    assert isinstance(loaded, PeftModel)
    assert torch.equal(logits(loaded), logits(model))


def test_the_update_is_not_baked_into_the_base(tmp_path):
    base = unevenly_cut(tiny_bert())
    without = logits(base)
    loaded = dsee.load(dsee.save(adapted(base), tmp_path / "out"))
    with loaded.disable_adapter():
        assert torch.equal(logits(loaded), without)
    assert not torch.equal(logits(loaded), without)


def test_the_stored_base_holds_no_part_of_a_lora(tmp_path):
    config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], init_lora_weights=False)
    model = get_peft_model(unevenly_cut(tiny_bert()), config).eval()
    out = dsee.save(model, tmp_path / "out")
    assert sorted(load_file(out / "model.safetensors")) == sorted(tiny_bert().state_dict())
    assert torch.equal(logits(dsee.load(out)), logits(model))


def test_an_update_on_a_stock_base_comes_back(tmp_path):
    model = adapted(tiny_bert())
    assert torch.equal(logits(dsee.load(dsee.save(model, tmp_path / "out"))), logits(model))


def test_a_pruned_update_with_fewer_entries_comes_back(tmp_path):
    model = adapted(tiny_bert(), n_sparse=40)
    dsee.prune(model, dsee.Heads(0.5))
    assert torch.equal(logits(dsee.load(dsee.save(model, tmp_path / "out"))), logits(model))


def test_saving_what_was_loaded_writes_the_same_bytes(tmp_path):
    first = dsee.save(adapted(unevenly_cut(tiny_bert())), tmp_path / "first")
    second = dsee.save(dsee.load(first), tmp_path / "second")
    assert bytes_of(first) == bytes_of(second)


def test_no_path_of_this_machine_is_stored(tmp_path):
    first = dsee.save(adapted(unevenly_cut(tiny_bert())), tmp_path / "first")
    second = dsee.save(dsee.load(first), tmp_path / "second")
    holders = [p.name for p in second.rglob("*") if p.is_file() and str(tmp_path).encode() in p.read_bytes()]
    assert holders == []


def test_a_loaded_update_is_frozen_unless_asked(tmp_path):
    out = dsee.save(adapted(unevenly_cut(tiny_bert())), tmp_path / "out")
    assert not any(parameter.requires_grad for parameter in dsee.load(out).parameters())


def test_trainable_lets_tuning_go_on(tmp_path):
    out = dsee.save(adapted(unevenly_cut(tiny_bert())), tmp_path / "out")
    model = dsee.load(out, trainable=True).train()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("dsee_" in name or "modules_to_save" in name for name in trained)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(**batch(labels=True)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_tuning_that_goes_on_can_be_saved_again(tmp_path):
    model = dsee.load(dsee.save(adapted(unevenly_cut(tiny_bert())), tmp_path / "out"), trainable=True)
    before = logits(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    again = dsee.load(dsee.save(model, tmp_path / "again"))
    assert torch.equal(logits(again), logits(model))
    assert not torch.equal(logits(again), before)


def test_an_adapter_by_another_name_comes_back(tmp_path):
    torch.manual_seed(1)
    config = dsee.DseeConfig(**CONFIG)
    model = get_peft_model(unevenly_cut(tiny_bert()), config, adapter_name="reviews").eval()
    loaded = dsee.load(dsee.save(model, tmp_path / "out"))
    assert list(loaded.peft_config) == ["reviews"]
    assert torch.equal(logits(loaded), logits(model))


def test_several_adapters_come_back(tmp_path):
    model = _two_adapters()
    loaded = dsee.load(dsee.save(model, tmp_path / "out"))
    assert sorted(loaded.peft_config) == ["default", "second"]
    for name in ("default", "second"):
        model.set_adapter(name)
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded), logits(model))


def test_the_active_adapter_stays_the_active_one(tmp_path):
    model = _two_adapters()
    model.set_adapter("second")
    loaded = dsee.load(dsee.save(model, tmp_path / "out"))
    assert loaded.active_adapters == ["second"]
    assert torch.equal(logits(loaded), logits(model))
