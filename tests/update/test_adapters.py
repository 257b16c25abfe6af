"""Several updates on one base: switching, adding up, switching off, deleting."""

import pytest
import torch

import dsee
from conftest import adapted, logits, tiny_bert
from dsee.update.layer import update_layers
from update.models import adapter_tensors, close, dense_update, scrambled, two_adapters


def alone(adapter):
    """Logits of a model in which the other adapter never existed."""
    settings = {"default": {}, "second": {"r": 2, "n_sparse": 5, "support": "random"}}[adapter]
    return logits(scrambled(adapted(tiny_bert(), **settings), seed={"default": 3, "second": 4}[adapter]))


@pytest.mark.parametrize("adapter", ["default", "second"])
def test_each_adapter_gives_what_it_gives_alone(adapter):
    model = two_adapters(tiny_bert())
    model.set_adapter(adapter)
    assert torch.equal(logits(model), alone(adapter))


def test_switching_back_gives_the_first_logits_again(family):
    model = two_adapters(family())
    first = logits(model)
    model.set_adapter("second")
    assert not torch.allclose(logits(model), first)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


def test_only_the_active_adapter_is_trained():
    model = two_adapters(tiny_bert())
    for active, other in (("second", "default"), ("default", "second")):
        model.set_adapter(active)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained
        assert all(f".{active}." in name and f".{other}." not in name for name in trained)


def test_an_adapter_that_covers_fewer_layers_leaves_the_others_alone():
    model = two_adapters(tiny_bert(), target_modules=["value"], layers_to_transform=[1])
    covered = [name for name, layer in update_layers(model) if layer.has_update("second")]
    assert covered == ["base_model.model.bert.encoder.layer.1.attention.self.value"]
    model.set_adapter("second")
    expected = scrambled(
        adapted(tiny_bert(), r=2, n_sparse=5, support="random", target_modules=["value"], layers_to_transform=[1]),
        seed=4,
    )
    assert torch.equal(logits(model), logits(expected))


def test_two_active_adapters_add_up():
    # without a head of their own, as only one head can answer
    base, model = tiny_bert(), adapted(tiny_bert(), task_type=None)
    config = {"r": 2, "n_sparse": 5, "support": "random", "target_modules": ["query", "key"], "init_weights": False}
    model.add_adapter("second", dsee.DseeConfig(**config))
    model.base_model.set_adapter(["default", "second"])
    for name, layer in update_layers(model):
        linear = base.get_submodule(name.removeprefix("base_model.model."))
        for adapter in ("default", "second"):
            if layer.has_update(adapter):
                linear.weight.data += dense_update(layer, adapter).float()
    torch.testing.assert_close(logits(model.eval()), logits(base), **close())


def test_the_disabled_update_gives_the_base_and_comes_back(family):
    model, base = scrambled(adapted(family())), logits(family())
    before = logits(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), before)


def test_a_deleted_adapter_is_gone_and_the_other_unchanged():
    model = two_adapters(tiny_bert())
    model.set_adapter("second")
    expected = logits(model)
    model.delete_adapter("default")
    assert not any(".default" in name for name in model.state_dict())
    assert not any(layer.has_update("default") for _, layer in update_layers(model))
    assert list(model.peft_config) == ["second"]
    assert torch.equal(logits(model), expected)


def test_when_the_active_adapter_is_deleted_the_other_answers():
    model = two_adapters(tiny_bert())
    with pytest.warns(UserWarning, match="was active"):
        model.delete_adapter("default")
    assert torch.equal(logits(model), alone("second"))


def test_each_adapter_is_saved_by_itself(tmp_path):
    two_adapters(tiny_bert()).save_pretrained(tmp_path)
    sizes = {
        name: {t.numel() for key, t in adapter_tensors(folder).items() if key.endswith("indices")}
        for name, folder in (("default", tmp_path), ("second", tmp_path / "second"))
    }
    assert sizes == {"default": {9}, "second": {5}}


def test_a_second_adapter_loads_beside_the_first(tmp_path):
    two_adapters(tiny_bert()).save_pretrained(tmp_path)
    model = scrambled(adapted(tiny_bert()), seed=3)
    model.load_adapter(tmp_path / "second", adapter_name="second")
    assert torch.equal(logits(model), alone("default"))
    model.set_adapter("second")
    assert torch.equal(logits(model.eval()), alone("second"))


def test_all_linear_does_not_nest_updates_when_used_twice():
    model = two_adapters(tiny_bert(), target_modules="all-linear")
    assert not any("dsee_" in name for name, _ in update_layers(model))
    assert all(layer.has_update("second") for _, layer in update_layers(model))


def test_unload_gives_the_bare_base():
    bare = adapted(tiny_bert(), task_type=None).unload()
    assert torch.equal(logits(bare), logits(tiny_bert()))
    assert not update_layers(bare)
