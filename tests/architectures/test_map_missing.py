"""A model without a map is refused by name, with the names that would do."""

import pytest
import torch
from torch import nn
from transformers import ModernBertConfig, ModernBertForSequenceClassification

import dsee
from conftest import adapted, logits, tiny_bert
from dsee.architectures import find, layers, structure, supported


def tiny_modernbert():
    torch.manual_seed(0)
    config = ModernBertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        vocab_size=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )
    return ModernBertForSequenceClassification(config).eval()


UNMAPPED = {"modernbert": tiny_modernbert, "Linear": lambda: nn.Linear(3, 3)}


@pytest.mark.parametrize("name", UNMAPPED)
@pytest.mark.parametrize("question", [find, layers, structure, dsee.flops], ids=lambda f: f.__name__)
def test_the_error_names_the_family_and_all_known_ones(name, question):
    with pytest.raises(dsee.ArchitectureError) as caught:
        question(UNMAPPED[name]())
    message = str(caught.value)
    assert repr(name) in message
    for known in supported():
        assert known in message


@pytest.mark.parametrize("name", UNMAPPED)
def test_pruning_is_refused_and_changes_nothing(name):
    model = UNMAPPED[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(dsee.ArchitectureError, match="no architecture map"):
        dsee.prune(model, dsee.Heads(0.25, score="weight"))
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert dsee.history(model) == []


def test_a_near_name_is_suggested():
    model = tiny_bert()
    model.config.model_type = "distilberta"
    with pytest.raises(dsee.ArchitectureError, match="Did you mean 'distilbert'"):
        find(model)


def test_a_family_without_a_map_is_tuned_when_its_targets_are_named():
    model = adapted(tiny_modernbert(), target_modules=["Wqkv", "Wo"], r=2, n_sparse=3, support="random")
    assert dsee.parameters(model).update == 2 * (2 * (32 + 96) + 3) + 2 * (2 * (32 + 32) + 3) + 2 * (2 * (40 + 32) + 3)
    assert not torch.equal(logits(model), logits(tiny_modernbert()))
    with pytest.raises(dsee.ArchitectureError, match="'modernbert'"):
        dsee.prune(model, dsee.Neurons(0.5))


def test_a_family_that_nobody_knows_needs_its_targets_named():
    with pytest.raises(ValueError, match="target_modules"):
        adapted(nn.Sequential(nn.Linear(3, 3)), task_type=None)


def test_a_model_that_is_not_what_its_configuration_says():
    model = nn.Linear(3, 3)
    model.config = tiny_bert().config
    with pytest.raises(dsee.ArchitectureError, match=r"Linear has no 'encoder\.layer'"):
        layers(model)
