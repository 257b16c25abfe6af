"""A family of one's own becomes known by one call."""

import importlib
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from transformers import ErnieConfig, ErnieForSequenceClassification

import dsee
from conftest import LABELS, POSITIONS, SIZES, VOCABULARY, logits
from dsee.architectures import default_targets, find, register, structure, supported
from dsee.architectures.bert import BERT


@pytest.fixture
def ernie(monkeypatch):
    """ERNIE has BERT's layout and no map of ours; the registration ends with the test."""
    registry = importlib.import_module("dsee.architectures._registry")
    monkeypatch.setattr(registry, "_MAPS", dict(registry._MAPS))
    register(replace(BERT, name="ernie", model_types=("ernie-m",)))
    torch.manual_seed(0)
    config = ErnieConfig(**SIZES, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS, num_labels=LABELS)
    return ErnieForSequenceClassification(config).eval()


def test_its_names_are_listed(ernie):
    assert {"ernie", "ernie-m"} <= set(supported())
    assert find(ernie).name == "ernie"
    assert default_targets()["ernie"] == default_targets()["dsee_ernie"] == ["query", "value"]


def test_it_is_unknown_without_the_registration():
    assert "ernie" not in supported()


def test_it_is_counted_and_pruned(ernie):
    before = dsee.flops(ernie, 2, 10).total
    report = dsee.prune(ernie, dsee.Heads(1, score="weight"), dsee.Neurons(0.5))
    assert structure(ernie) == report.after == {"heads": [3, 3, 3], "neurons": [20, 20, 20]}
    assert dsee.flops(ernie, 2, 10).total < before
    assert logits(ernie).shape == (4, LABELS)


def test_it_gets_its_default_targets(ernie):
    model = get_peft_model(ernie, dsee.DseeConfig(task_type="SEQ_CLS", r=2, n_sparse=2))
    assert model.peft_config["default"].target_modules == {"query", "value"}


def test_it_is_saved_and_loaded_after_a_cut(ernie, tmp_path):
    dsee.prune(ernie, dsee.Heads(1, score="weight"))
    dsee.save(ernie, tmp_path / "out")
    assert torch.equal(logits(dsee.load(tmp_path / "out")), logits(ernie))
