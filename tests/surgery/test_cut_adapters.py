"""Adapters on a cut model: all of them are cut, their sizes are noted, and they load on an equally cut base."""

from copy import deepcopy

import pytest
import torch
from mask_oracle import ALL_LINEARS, UNEVEN, assert_equal_logits, strong, zeroed
from peft import PeftModel

from conftest import batch, logits, tiny_bert
from dsee import DseeConfig
from dsee.pruning import LayerPlan
from dsee.surgery import cut
from dsee.update import DseeLayer

HALF = [LayerPlan(heads=(0, 1))] * 3


def sizes(model, adapter="default"):
    return {
        name: layer.dsee_S[adapter].n_sparse if adapter in layer.dsee_S else 0
        for name, layer in model.get_base_model().named_modules()
        if isinstance(layer, DseeLayer)
    }


def reloaded(model, plan, base, folder):
    model.save_pretrained(folder)
    cut(base, plan)
    return PeftModel.from_pretrained(base, folder).eval()


def two_adapters():
    model = strong(tiny_bert(), target_modules=ALL_LINEARS)
    config = {"task_type": "SEQ_CLS", "r": 2, "n_sparse": 50, "support": "random", "init_weights": False}
    model.add_adapter("other", DseeConfig(target_modules=["query", "dense"], seed=7, **config))
    return model


def test_n_sparse_pattern_holds_the_actual_sizes(family):
    model = strong(family(), target_modules=ALL_LINEARS)
    cut(model, UNEVEN)
    noted = model.peft_config["default"].n_sparse_pattern
    assert noted == sizes(model)
    assert 0 < sum(noted.values()) < 9 * len(noted)


def test_an_adapter_loads_on_an_equally_cut_base(family, tmp_path):
    model = strong(family(), target_modules=ALL_LINEARS)
    cut(model, UNEVEN)
    again = reloaded(model, UNEVEN, family(), tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert sizes(again) == sizes(model)


@pytest.mark.parametrize("r", [0, 4])
def test_an_adapter_that_lost_all_its_entries_works_and_loads(r, tmp_path):
    model = strong(tiny_bert(), r=r, n_sparse=1)
    gone = [LayerPlan(heads=rows_in_use(model, layer)) for layer in range(3)]
    masked = zeroed(model, gone)
    cut(model, gone)
    assert set(sizes(model).values()) == {0}
    assert_equal_logits(model, masked)
    again = reloaded(model, gone, tiny_bert(), tmp_path)
    assert torch.equal(logits(again), logits(model))


def rows_in_use(model, layer):
    """The heads that hold the single entries of the query and the value of a layer."""
    attention = model.get_base_model().bert.encoder.layer[layer].attention.self
    both = (attention.query, attention.value)
    return tuple(sorted({int(part.dsee_S["default"].rows_and_columns()[0]) // 8 for part in both}))


@pytest.mark.parametrize("pattern", ["query", "attention.self.query", r"encoder.layer.\d.attention.self.(query|value)"])
def test_a_pattern_of_the_user_does_not_hide_the_actual_size(pattern, tmp_path):
    model = strong(tiny_bert(), n_sparse=1, n_sparse_pattern={pattern: 2})
    cut(model, HALF)
    assert 0 in sizes(model).values()
    again = reloaded(model, HALF, tiny_bert(), tmp_path)
    assert torch.equal(logits(again), logits(model))


def test_all_adapters_are_cut():
    model = two_adapters()
    masked = zeroed(model, UNEVEN)
    cut(model, UNEVEN)
    seen = []
    for adapter in ("default", "other"):
        for each in (model, masked):
            each.set_adapter(adapter)
        assert_equal_logits(model, masked)
        assert model.peft_config[adapter].n_sparse_pattern.items() >= sizes_of(model, adapter).items()
        seen.append(logits(model))
    assert not torch.equal(*seen)


def sizes_of(model, adapter):
    inner = model.get_base_model().named_modules()
    carrying = {name for name, layer in inner if isinstance(layer, DseeLayer) and layer.has_update(adapter)}
    return {name: n for name, n in sizes(model, adapter).items() if name in carrying}


def test_adapters_keep_serving_one_batch_after_a_cut():
    model = two_adapters()
    masked = zeroed(model, UNEVEN)
    cut(model, UNEVEN)
    names = ["default", "other", "__base__", "default"]
    with torch.no_grad():
        mixed = [each(**batch(), adapter_names=names).logits for each in (model, masked)]
    torch.testing.assert_close(*mixed, rtol=0.0, atol=1e-5)


def test_a_disabled_adapter_leaves_the_cut_base(family):
    model, base = strong(family()), family()
    cut(model, UNEVEN)
    cut(base, UNEVEN)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base))
    assert not torch.allclose(logits(model), logits(base))


def test_the_other_copy_is_untouched():
    model = strong(tiny_bert())
    copy = deepcopy(model)
    before = logits(copy)
    cut(model, UNEVEN)
    assert torch.equal(logits(copy), before)
    assert copy.peft_config["default"].n_sparse_pattern == {}
