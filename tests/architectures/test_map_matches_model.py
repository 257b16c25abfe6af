"""A map has to find the parts of the model it was written for."""

import pytest
from torch import nn
from transformers import AutoModel

from conftest import SIZES, adapted, tiny_bert
from dsee.architectures import default_targets, find, layers, structure, supported

PARTS = ("query", "key", "value", "output", "ffn_in", "ffn_out")
HEAD_SIZE = SIZES["hidden_size"] // SIZES["num_attention_heads"]


def test_structure_is_what_the_configuration_says(family):
    assert structure(family()) == {"heads": [4, 4, 4], "neurons": [40, 40, 40]}


def test_structure_is_the_same_through_an_update(family):
    base = family()
    expected = structure(base)
    assert structure(adapted(base, target_modules=r".*layer\.\d+\..*(query|q_lin|dense|lin1)")) == expected


def test_structure_is_the_same_without_a_task_head(family):
    model = AutoModel.from_config(family().config)
    assert structure(model) == {"heads": [4, 4, 4], "neurons": [40, 40, 40]}


def test_every_part_has_the_shape_of_its_role(family):
    shapes = {"ffn_in": (40, 32), "ffn_out": (32, 40)}
    for view in layers(family()):
        assert view.head_size == HEAD_SIZE
        for part in PARTS:
            linear = view.part(part)
            assert isinstance(linear, nn.Linear)
            assert linear.weight.shape == shapes.get(part, (32, 32)), part


def test_the_six_parts_are_six_modules(family):
    for view in layers(family()):
        assert len({id(view.part(part)) for part in PARTS}) == len(PARTS)


def test_layers_are_numbered_from_the_input_on(family):
    model = family()
    views = layers(model)
    assert [view.index for view in views] == [0, 1, 2]
    order = [id(module) for module in model.modules()]
    positions = [order.index(id(view.module)) for view in views]
    assert positions == sorted(positions)


def test_default_targets_name_the_query_and_the_value(family):
    model = family()
    architecture = find(model)
    first = layers(model)[0]
    found = {name.rpartition(".")[2]: module for name, module in first.module.named_modules()}
    query, value = architecture.default_targets
    assert found[query] is first.part("query")
    assert found[value] is first.part("value")


def test_a_cut_model_type_has_the_targets_of_its_family():
    targets = default_targets()
    assert set(targets) == set(supported()) | {f"dsee_{name}" for name in supported()}
    assert targets["dsee_bert"] == targets["bert"] == ["query", "value"]


@pytest.mark.parametrize("model_type", ["xlm-roberta", "camembert"])
def test_relatives_share_a_map(model_type):
    model = tiny_bert()
    model.config.model_type = model_type
    assert find(model).name == "roberta"
