"""The adapter's file holds what is trained and where, nothing dense, and is as small as that."""

import json

import pytest
import torch

from conftest import adapted, tiny_bert
from update.models import adapter_tensors, head_size

MATRICES, R, N = 6, 4, 9


@pytest.fixture
def folder(tmp_path):
    adapted(tiny_bert(), r=R, n_sparse=N).save_pretrained(tmp_path)
    return tmp_path


def test_the_file_holds_exactly_the_parts_of_the_update_and_the_head(folder):
    parts = {}
    for name, tensor in adapter_tensors(folder).items():
        part = "head" if "classifier" in name else name.partition("dsee_")[2]
        parts.setdefault(part, []).append((tuple(tensor.shape), tensor.dtype))
    assert parts.pop("head")
    assert parts == {
        "U.weight": [((32, R), torch.float32)] * MATRICES,
        "V.weight": [((R, 32), torch.float32)] * MATRICES,
        "S.weight": [((N,), torch.float32)] * MATRICES,
        "S.indices": [((N,), torch.int32)] * MATRICES,
        "S.shape": [((2,), torch.int32)] * MATRICES,
    }


def test_positions_in_the_file_ascend(folder):
    for name, tensor in adapter_tensors(folder).items():
        if name.endswith("indices"):
            assert bool((tensor.diff() > 0).all())


def test_the_file_is_as_large_as_its_content(folder):
    numbers = MATRICES * (R * (32 + 32) + 2 * N + 2) + head_size(tiny_bert())
    # safetensors: 8 bytes, then one JSON entry per tensor with its name, dtype, shape and place
    header = 8 + sum(len(name) + 100 for name in adapter_tensors(folder))
    assert 4 * numbers < (folder / "adapter_model.safetensors").stat().st_size <= 4 * numbers + header


def test_the_file_of_a_sparse_only_update_is_smaller_than_one_matrix(tmp_path):
    adapted(tiny_bert(), r=0, n_sparse=N, task_type=None).save_pretrained(tmp_path)
    tensors = adapter_tensors(tmp_path)
    assert sum(t.numel() for t in tensors.values()) == MATRICES * (2 * N + 2)
    assert max(t.numel() for t in tensors.values()) == N


def test_the_configuration_is_plain_json_that_says_the_support_is_stored(folder):
    stored = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert stored["peft_type"] == "DSEE"
    assert stored["support_stored"] is True
    assert stored["target_modules"] == ["query", "value"]


def test_saving_does_not_change_the_configuration_in_memory(tmp_path):
    model = adapted(tiny_bert())
    model.save_pretrained(tmp_path)
    assert model.peft_config["default"].support_stored is False
    assert model.peft_config["default"].target_modules == {"query", "value"}


def test_no_file_is_a_pickle(folder):
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
