"""A cut that cannot be carried out whole is refused, and the model is as it was."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

import dsee
from conftest import adapted, logits, tiny_bert
from dsee.architectures import structure
from dsee.pruning import LayerPlan
from dsee.surgery import cut

FULL = {"heads": [4, 4, 4], "neurons": [40, 40, 40]}


def test_a_merged_update_has_to_be_unmerged_first():
    model = adapted(tiny_bert())
    model.merge_adapter()
    with pytest.raises(dsee.OrderError, match="unmerge_adapter"):
        cut(model, [LayerPlan(heads=(0,))] * 3)
    assert structure(model) == FULL
    model.unmerge_adapter()
    cut(model, [LayerPlan(heads=(0,))] * 3)
    assert structure(model)["heads"] == [3, 3, 3]


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_a_plan_of_another_length_changes_nothing(count):
    model = tiny_bert()
    before = logits(model)
    with pytest.raises(dsee.InputError, match="plan"):
        cut(model, [LayerPlan(heads=(0,))] * count)
    assert structure(model) == FULL
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize(
    "wrong",
    [LayerPlan(heads=(4,)), LayerPlan(neurons=(40,)), LayerPlan(heads=(-1,)), LayerPlan(neurons=(0, 99))],
    ids=["one head too far", "one neuron too far", "counted from the end", "far off"],
)
def test_a_part_that_is_not_there_changes_nothing(wrong):
    model = tiny_bert()
    with pytest.raises(dsee.InputError, match="layer 1"):
        cut(model, [LayerPlan(heads=(0,)), wrong, LayerPlan()])
    assert structure(model) == FULL


@pytest.mark.parametrize(
    "everything", [LayerPlan(heads=(0, 1, 2, 3)), LayerPlan(neurons=tuple(range(40)))], ids=["heads", "neurons"]
)
def test_a_plan_that_empties_a_layer_changes_nothing(everything):
    model = tiny_bert()
    with pytest.raises(dsee.InputError, match="layer 1"):
        cut(model, [LayerPlan(heads=(0,)), everything, LayerPlan()])
    assert structure(model) == FULL


class Packed(nn.Module):
    """Stands for a quantised linear: it has a weight, but not one whose rows could be taken out."""

    def __init__(self, linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


def test_a_kind_of_linear_that_cannot_be_cut_changes_nothing():
    model = tiny_bert()
    attention = model.bert.encoder.layer[1].attention.self
    attention.key = Packed(attention.key)
    before = logits(model)
    with pytest.raises(dsee.ArchitectureError, match="Packed cannot be cut"):
        cut(model, [LayerPlan(heads=(0,))] * 3)
    assert torch.equal(logits(model), before)


def recomputed_by_torch_prune(linear):
    torch_prune.l1_unstructured(linear, "weight", 0.5)


RECOMPUTED = {"torch.nn.utils.prune": recomputed_by_torch_prune, "parametrization": parametrizations.weight_norm}


@pytest.mark.parametrize("how", RECOMPUTED)
def test_a_weight_that_is_recomputed_at_every_call_is_refused_by_name(how):
    model = tiny_bert()
    RECOMPUTED[how](model.bert.encoder.layer[1].attention.self.query)
    before = logits(model)
    with pytest.raises(dsee.InputError, match="recomputed"):
        dsee.prune(model, dsee.Heads(1, score="weight"))
    assert structure(model) == FULL
    assert torch.equal(logits(model), before)
