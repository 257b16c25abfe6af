"""What stays after a cut learns as it would have beside the zeroed parts, and what was frozen stays frozen."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from mask_oracle import ALL_LINEARS, UNEVEN, strong, zeroed

from conftest import batch, tiny_bert
from dsee.architectures import layers
from dsee.surgery import cut
from dsee.update import DseeLayer

PARTS = ("query", "key", "value", "output", "ffn_in", "ffn_out")


def kept(view, layer_plan):
    """Rows and columns that stay of each part, from the plan alone."""
    heads = [h * view.head_size + i for h in range(4) if h not in layer_plan.heads for i in range(view.head_size)]
    neurons = [n for n in range(40) if n not in layer_plan.neurons]
    every = list(range(32))
    attention = dict.fromkeys(("query", "key", "value"), (heads, every))
    return attention | {"output": (every, heads), "ffn_in": (neurons, every), "ffn_out": (every, neurons)}


def sparse_gradient(sparse):
    dense = torch.zeros(sparse.out_features, sparse.in_features, dtype=sparse.weight.dtype)
    dense.view(-1)[sparse.indices.long()] = sparse.weight.grad
    return dense


def cut_and_masked(model):
    masked = zeroed(model, UNEVEN)
    smaller = deepcopy(model)
    cut(smaller, UNEVEN)
    for each in (masked, smaller):
        each(**batch(labels=True)).loss.backward()
    before, after = layers(masked), layers(smaller)
    for old, new, layer_plan in zip(before, after, UNEVEN, strict=True):
        for part, (rows, columns) in kept(old, layer_plan).items():
            yield old.part(part), new.part(part), rows, columns


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def test_the_update_gets_the_gradients_of_the_masked_model(family):
    model = strong(family(), target_modules=ALL_LINEARS, n_sparse=60).double()
    size = 0.0
    for old, new, rows, columns in cut_and_masked(model):
        close(new.dsee_U["default"].weight.grad, old.dsee_U["default"].weight.grad[rows])
        close(new.dsee_V["default"].weight.grad, old.dsee_V["default"].weight.grad[:, columns])
        expected = sparse_gradient(old.dsee_S["default"])[rows][:, columns]
        if "default" in new.dsee_S:
            close(sparse_gradient(new.dsee_S["default"]), expected)
        size += float(expected.abs().sum())
    assert size > 1e-3


def test_full_tuning_gets_the_gradients_of_the_masked_model(family):
    for old, new, rows, columns in cut_and_masked(family().double()):
        close(new.weight.grad, old.weight.grad[rows][:, columns])
        close(new.bias.grad, old.bias.grad[rows])


def test_a_training_step_moves_the_update_and_nothing_else(family):
    model = strong(family(), target_modules=ALL_LINEARS)
    cut(model, UNEVEN)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()(**batch(labels=True)).loss.backward()
    optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    trained = {name for name in before if "dsee_" in name or "modules_to_save" in name}
    assert moved == trained
    assert any("dsee_S" in name for name in moved)


@pytest.mark.parametrize("bias", ["none", "all", "dsee_only"])
def test_requires_grad_is_preserved(bias):
    model = strong(tiny_bert(), target_modules=ALL_LINEARS, bias=bias, n_sparse=300)
    model.add_adapter("idle", replace(deepcopy(model.peft_config["default"]), bias="none"))
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert len(set(flags.values())) == 2
    cut(model, UNEVEN)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags


def test_a_frozen_model_stays_frozen(family):
    model = family().requires_grad_(False)
    cut(model, UNEVEN)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_an_optimizer_made_before_the_cut_no_longer_moves_the_model():
    model = strong(tiny_bert())
    updated = [m for m in model.modules() if isinstance(m, DseeLayer)]
    stale = torch.optim.AdamW([p for p in updated[0].parameters() if p.requires_grad], lr=1.0)
    cut(model, UNEVEN)
    after_cut = updated[0].dsee_U["default"].weight.detach().clone()
    model(**batch(labels=True)).loss.backward()
    stale.step()
    assert torch.equal(updated[0].dsee_U["default"].weight, after_cut)
