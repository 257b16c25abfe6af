"""load(save(m)) is m: the same logits to the last bit, and the same bytes when saved again."""

import pytest
import torch
from artifact_tools import STRUCTURE, bytes_of, unevenly_cut

import dsee
from conftest import adapted, logits, tiny_bert
from dsee.architectures import structure
from dsee.artifact import read_manifest

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_model_with_uneven_layers_comes_back_to_the_last_bit(family, dtype, tmp_path):
    model = unevenly_cut(family().to(dtype))
    loaded = dsee.load(dsee.save(model, tmp_path / "out"))
    assert loaded.dtype == dtype
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_saving_what_was_loaded_writes_the_same_bytes(family, dtype, tmp_path):
    first = dsee.save(unevenly_cut(family().to(dtype)), tmp_path / "first")
    second = dsee.save(dsee.load(first), tmp_path / "second")
    assert bytes_of(first) == bytes_of(second)
    assert "model.safetensors" in bytes_of(first)


def test_two_saves_of_one_model_write_the_same_bytes(family, tmp_path):
    model = unevenly_cut(family())
    assert bytes_of(dsee.save(model, tmp_path / "a")) == bytes_of(dsee.save(model, tmp_path / "b"))


def test_saving_leaves_the_model_in_memory_as_it_was(family, tmp_path):
    model = unevenly_cut(family())
    before, config, model_type = logits(model), model.config, model.config.model_type
    dsee.save(model, tmp_path / "out")
    assert model.config is config
    assert model.config.model_type == model_type
    assert torch.equal(logits(model), before)


def test_the_layers_come_back_with_their_own_numbers_of_heads_and_neurons(family, tmp_path):
    out = dsee.save(unevenly_cut(family()), tmp_path / "out")
    assert read_manifest(out).structure == STRUCTURE
    assert structure(dsee.load(out)) == STRUCTURE


def test_a_loaded_model_is_ready_for_inference(tmp_path):
    model = unevenly_cut(tiny_bert()).train()
    assert not dsee.load(dsee.save(model, tmp_path / "out")).training


def test_a_loaded_model_can_be_cut_and_saved_again(family, tmp_path):
    loaded = dsee.load(dsee.save(unevenly_cut(family()), tmp_path / "once"))
    dsee.prune(loaded, dsee.Neurons(4, score="weight"))
    again = dsee.load(dsee.save(loaded, tmp_path / "twice"))
    assert structure(again)["neurons"] == [n - 4 for n in STRUCTURE["neurons"]]
    assert torch.equal(logits(again), logits(loaded))


def test_loading_in_another_dtype_is_the_model_in_that_dtype(tmp_path):
    model = unevenly_cut(tiny_bert())
    loaded = dsee.load(dsee.save(model, tmp_path / "out"), dtype=torch.bfloat16)
    assert torch.equal(logits(loaded), logits(model.to(torch.bfloat16)))


def test_a_tuned_pruned_and_merged_model_comes_back(family, tmp_path):
    model = adapted(family(), target_modules=None)
    dsee.prune(model, dsee.Heads(0.25), dsee.Neurons(0.4))
    merged = dsee.merge(model)
    assert torch.equal(logits(dsee.load(dsee.save(merged, tmp_path / "out"))), logits(merged))


def test_facts_are_kept(tmp_path):
    facts = {"accuracy": 0.875, "on": ["a", "b"]}
    assert read_manifest(dsee.save(tiny_bert(), tmp_path / "out", facts=facts)).facts == facts


def test_a_missing_parent_folder_is_made(tmp_path):
    out = dsee.save(tiny_bert(), tmp_path / "runs" / "7" / "model")
    assert torch.equal(logits(dsee.load(out)), logits(tiny_bert()))
