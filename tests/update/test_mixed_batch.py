"""adapter_names: each row of a batch asks for an adapter of its own."""

import pytest
import torch

import dsee
from conftest import adapted, batch, logits, tiny_bert
from update.models import close, scrambled, two_adapters

NAMES = ["second", "default", "__base__", "second"]


def alone(model, adapter, inputs):
    if adapter == "__base__":
        with model.disable_adapter():
            return logits(model, inputs)
    model.set_adapter(adapter)
    return logits(model, inputs)


def mixed(model, names, inputs=None):
    with torch.no_grad():
        return model(**(inputs or batch()), adapter_names=names).logits


def without_heads(base):
    model = adapted(base, task_type=None)
    config = {"r": 2, "n_sparse": 5, "support": "random", "init_weights": False}
    model.add_adapter("second", dsee.DseeConfig(**config))
    return scrambled(scrambled(model, "default", 3), "second", 4).eval()


@pytest.mark.parametrize("build", [without_heads, two_adapters], ids=["updates", "updates and heads"])
@pytest.mark.parametrize("row", range(4), ids=NAMES)
def test_each_row_gets_what_its_adapter_gives_alone(build, row, family):
    model = build(family())
    expected = alone(model, NAMES[row], batch())[row]
    model.set_adapter("default")
    torch.testing.assert_close(mixed(model, NAMES)[row], expected, **close())


def test_a_batch_of_one_adapter_equals_that_adapter_active():
    model = without_heads(tiny_bert())
    expected = alone(model, "second", batch())
    model.set_adapter("default")
    torch.testing.assert_close(mixed(model, ["second"] * 4), expected, **close())


def test_the_active_adapter_is_the_same_after_a_mixed_batch():
    model = two_adapters(tiny_bert())
    before = logits(model)
    mixed(model, NAMES)
    assert torch.equal(logits(model), before)


def test_an_adapter_that_skips_a_layer_leaves_it_to_the_base():
    model = two_adapters(tiny_bert(), target_modules=["value"], layers_to_transform=[1])
    model.base_model.model.classifier.modules_to_save["second"].load_state_dict(
        model.base_model.model.classifier.modules_to_save["default"].state_dict()
    )
    expected = alone(model, "second", batch())[0]
    model.set_adapter("default")
    torch.testing.assert_close(mixed(model, NAMES)[0], expected, **close())


def test_an_unknown_name_is_refused_and_the_nearest_named():
    model = two_adapters(tiny_bert())
    with pytest.raises(dsee.InputError, match=r"no adapter 'secnd'\. Did you mean 'second'.*default, second"):
        mixed(model, ["default", "secnd", "default", "default"])


def test_training_mode_is_refused():
    with pytest.raises(dsee.InputError, match=r"call model\.eval\(\)"):
        mixed(two_adapters(tiny_bert()).train(), NAMES)


def test_a_wrong_number_of_names_is_refused():
    with pytest.raises((dsee.InputError, ValueError), match="adapter_names"):
        mixed(two_adapters(tiny_bert()), NAMES[:3])


def test_a_merged_update_is_refused():
    model = two_adapters(tiny_bert())
    model.merge_adapter()
    with pytest.raises(dsee.InputError, match=r"unmerge_adapter\(\)"):
        mixed(model, NAMES)


def test_after_a_refusal_the_model_answers_as_before():
    model = two_adapters(tiny_bert())
    before = logits(model)
    with pytest.raises((dsee.InputError, ValueError)):
        mixed(model, NAMES[:3])
    assert torch.equal(logits(model), before)
