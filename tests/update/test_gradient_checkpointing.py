"""Recomputing activations changes no gradient."""

import pytest
import torch

from conftest import adapted, batch, tiny_bert
from update.models import own

# transformers 5.23 has a new name for it, the first versions of 5 know the old one only
pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")


def gradients(use_reentrant=None):
    model = adapted(tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).train()
    if use_reentrant is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        assert model.base_model.model.is_gradient_checkpointing
    model(**batch(labels=True)).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if name in own(model)}


def test_gradients_are_those_without_checkpointing():
    plain = gradients()
    assert all(grad is not None for grad in plain.values())
    for use_reentrant in (False, True):
        again = gradients(use_reentrant)
        assert all(torch.equal(again[name], grad) for name, grad in plain.items())


def test_a_checkpointed_layer_is_run_twice():
    # or the test above would show nothing
    model = adapted(tiny_bert()).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    layer = model.base_model.model.bert.encoder.layer[1].attention.self.query
    calls = []
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    model(**batch(labels=True)).loss.backward()
    assert len(calls) == 2
