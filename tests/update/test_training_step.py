"""A training step moves the update and the head, and nothing else."""

import pytest
import torch

from conftest import adapted, batch, tiny_bert
from dsee.update.layer import update_layers
from update.models import own, snapshot, train_step


def moved(model, **kwargs):
    before = snapshot(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    train_step(model.train(), **kwargs)
    assert all(torch.equal(buffers[name], buffer) for name, buffer in model.named_buffers())
    return {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}


def test_one_step_moves_exactly_the_update_and_the_head(family):
    model = adapted(family())
    assert moved(model) == own(model)


@pytest.mark.parametrize("parts", [{"r": 0}, {"n_sparse": 0}], ids=str)
def test_one_step_moves_exactly_the_update_when_it_has_one_part(parts):
    model = adapted(tiny_bert(), **parts)
    assert moved(model) == own(model)


def test_the_first_step_of_a_fresh_update_moves_u_s_and_the_head_but_not_v():
    # U starts at zero, so that no gradient reaches V at first
    model = adapted(tiny_bert(), init_weights=True)
    assert moved(model) == {name for name in own(model) if "dsee_V" not in name}


def test_the_second_step_of_a_fresh_update_moves_v_too():
    model = adapted(tiny_bert(), init_weights=True)
    optimizer = train_step(model.train())
    assert moved(model, optimizer=optimizer) == own(model)


def test_training_lowers_the_loss():
    model = adapted(tiny_bert(), init_weights=True)
    with torch.no_grad():
        before = float(model(**batch(labels=True)).loss)
    # at the rate of the other tests twenty steps leap about, and where they end is chance
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(20):
        train_step(model, optimizer)
    with torch.no_grad():
        assert float(model(**batch(labels=True)).loss) < 0.5 * before


@pytest.mark.parametrize("bias", ["all", "dsee_only"])
def test_biases_are_trained_only_where_asked(bias):
    model = adapted(tiny_bert(), bias=bias)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    biases = {name for name, _ in model.named_parameters() if name.endswith("bias")}
    if bias == "all":
        wanted = {name for name in biases if "original_module" not in name}
    else:
        wanted = {f"{name}.base_layer.bias" for name, _ in update_layers(model)}
    assert {n for n in trained - own(model) if "original_module" not in n} == wanted - own(model)


def test_without_a_task_type_only_the_update_is_trained():
    model = adapted(tiny_bert(), task_type=None)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == own(model)
    assert all("dsee_" in name for name in own(model))


def test_dropout_acts_in_training_only():
    model = adapted(tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), dropout=0.5)
    from conftest import logits

    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))
