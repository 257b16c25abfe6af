"""A model without a map is refused by name, with the names that would do."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import dsee
from conftest import tiny_bert
from dsee.architectures import find, layers, structure, supported


def tiny_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=100, n_positions=40, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config)


UNMAPPED = {"gpt2": tiny_gpt2, "Linear": lambda: nn.Linear(3, 3)}


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


def test_the_name_of_an_unmapped_family_is_asked_for_through_peft():
    from peft import get_peft_model

    config = dsee.DseeConfig(task_type="CAUSAL_LM", target_modules=["c_proj"], r=2, n_sparse=2, support="random")
    model = get_peft_model(tiny_gpt2(), config)
    with pytest.raises(dsee.ArchitectureError, match="'gpt2'"):
        dsee.prune(model, dsee.Neurons(0.5))


def test_a_model_that_is_not_what_its_configuration_says():
    model = nn.Linear(3, 3)
    model.config = tiny_bert().config
    with pytest.raises(dsee.ArchitectureError, match=r"Linear has no 'encoder\.layer'"):
        layers(model)
