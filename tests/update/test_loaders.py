"""Every loader of PEFT and transformers brings back the same logits."""

import json
import subprocess
import sys

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from transformers import AutoModelForSequenceClassification

from conftest import adapted, logits, tiny_bert
from dsee.update.layer import update_layers
from update.models import adapted_gpt2, scrambled, tiny_gpt2


@pytest.fixture
def saved(tmp_path):
    """A base folder, an adapter folder that names it, and the logits of the two together."""
    tiny_bert().save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base").eval()
    model = scrambled(adapted(base))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter", logits(model)


def test_peft_loads_every_family(family, tmp_path):
    model = scrambled(adapted(family()))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(family(), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("parts", [{"r": 0}, {"n_sparse": 0}], ids=str)
def test_peft_loads_an_update_of_one_part(parts, tmp_path):
    model = scrambled(adapted(tiny_bert(), **parts))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_bert(), tmp_path).eval()), logits(model))


def test_peft_loads_conv1d(tmp_path):
    model = scrambled(adapted_gpt2())
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_gpt2(), tmp_path).eval()), logits(model))


def test_peft_loads_under_another_name(saved):
    _, adapter, expected = saved
    loaded = PeftModel.from_pretrained(tiny_bert(), adapter, adapter_name="other").eval()
    assert torch.equal(logits(loaded), expected)


def test_peft_loads_without_allocating_first(saved):
    _, adapter, expected = saved
    loaded = PeftModel.from_pretrained(tiny_bert(), adapter, low_cpu_mem_usage=True).eval()
    assert not any(t.is_meta for t in loaded.state_dict().values())
    assert torch.equal(logits(loaded), expected)


def test_peft_loads_for_further_training(saved):
    _, adapter, expected = saved
    loaded = PeftModel.from_pretrained(tiny_bert(), adapter, is_trainable=True).eval()
    assert torch.equal(logits(loaded), expected)
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, _ in loaded.named_parameters() if "dsee_" in n or "modules_to_save" in n
    }


def test_the_auto_class_loads(saved):
    _, adapter, expected = saved
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=3).eval()
    assert torch.equal(logits(loaded), expected)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_transformers_loads_onto_a_base(saved, low_cpu_mem_usage):
    base, adapter, expected = saved
    model = AutoModelForSequenceClassification.from_pretrained(base)
    model.load_adapter(str(adapter), low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(model.eval()), expected)


def test_transformers_loads_the_adapter_folder_itself(saved):
    _, adapter, expected = saved
    model = AutoModelForSequenceClassification.from_pretrained(adapter, num_labels=3).eval()
    assert torch.equal(logits(model), expected)


def test_what_transformers_loaded_it_can_save_switch_off_and_delete(saved, tmp_path):
    base, adapter, expected = saved
    model = AutoModelForSequenceClassification.from_pretrained(base).eval()
    model.load_adapter(str(adapter), adapter_name="default")
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_bert(), tmp_path / "again").eval()), expected)
    model.disable_adapters()
    assert torch.equal(logits(model), logits(tiny_bert()))
    model.enable_adapters()
    model.delete_adapter("default")
    assert not any("dsee_" in name for name in model.state_dict())


def test_a_fresh_process_needs_only_to_import_dsee(saved):
    base, adapter, _ = saved
    program = (
        "import sys, dsee, json, torch\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForSequenceClassification\n"
        "base = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])\n"
        "model = PeftModel.from_pretrained(base, sys.argv[2]).eval()\n"
        "with torch.no_grad(): print(json.dumps(model(torch.arange(5, 25).view(2, 10)).logits.tolist()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(base), str(adapter)], capture_output=True, text=True, check=True
    )
    here = PeftModel.from_pretrained(tiny_bert(), adapter).eval()
    ids = {"input_ids": torch.arange(5, 25).view(2, 10)}
    assert json.loads(run.stdout.strip().splitlines()[-1]) == logits(here, ids).tolist()


def test_loading_never_searches_a_support(saved, monkeypatch):
    from dsee.support import _registry

    def never(*_):
        raise AssertionError("the support came with the file")

    monkeypatch.setattr(_registry, "_RULES", dict.fromkeys(_registry._RULES, never))
    _, adapter, expected = saved
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_bert(), adapter).eval()), expected)


def test_the_loaded_positions_are_those_of_the_file_and_not_of_the_rule(saved, tmp_path):
    # the base at hand differs from the one the support was chosen on
    _, adapter, _ = saved
    loaded = PeftModel.from_pretrained(tiny_bert(seed=5), adapter)
    original = adapted(tiny_bert())
    for (_, ours), (_, theirs) in zip(update_layers(loaded), update_layers(original), strict=True):
        assert torch.equal(ours.dsee_S["default"].indices, theirs.dsee_S["default"].indices)
