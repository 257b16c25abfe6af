"""Scoring with data needs no gradients switched on and leaves none behind."""

import pytest
import torch
from score_oracle import UNITS, score

import dsee
from conftest import adapted, batch, tiny_bert

CALIBRATION = [batch(labels=True)]


def hooks(model):
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("unit", UNITS)
def test_a_frozen_model_is_scored_like_any_other(family, unit):
    expected = score(family(), "taylor", unit, CALIBRATION)
    frozen = score(family().requires_grad_(False), "taylor", unit, CALIBRATION)
    assert all(torch.equal(a, b) for a, b in zip(frozen, expected, strict=True))


@pytest.mark.parametrize("frozen", [False, True])
def test_no_gradient_stays(family, frozen):
    model = family().requires_grad_(not frozen)
    score(model, "taylor", "heads", CALIBRATION)
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == []
    assert all(parameter.requires_grad is not frozen for parameter in model.parameters())


def test_gradients_that_were_there_stay_as_they_were():
    model = adapted(tiny_bert())
    model(**batch(labels=True, seed=5)).loss.backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    score(model, "taylor", "neurons", CALIBRATION)
    after = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert before
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("training", [False, True])
def test_dropout_is_off_meanwhile_and_the_mode_is_restored(family, training):
    expected = score(family().eval(), "taylor", "heads", CALIBRATION)
    model = family().train(training)
    actual = score(model, "taylor", "heads", CALIBRATION)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert {module.training for module in model.modules()} == {training}


def test_a_part_the_user_put_in_eval_mode_stays_there():
    model = tiny_bert().train()
    model.bert.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    score(model, "taylor", "heads", CALIBRATION)
    assert {name: module.training for name, module in model.named_modules()} == modes


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_it_works_with_gradients_switched_off_around_it(mode):
    expected = score(tiny_bert(), "taylor", "heads", CALIBRATION)
    with mode():
        before = torch.is_grad_enabled()
        actual = score(tiny_bert(), "taylor", "heads", CALIBRATION)
        assert torch.is_grad_enabled() is before
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_no_hook_stays():
    model = tiny_bert()
    before = hooks(model)
    score(model, "taylor", "heads", CALIBRATION)
    assert hooks(model) == before


def test_nothing_stays_after_a_batch_that_fails():
    model = tiny_bert().train()
    before = hooks(model)
    with pytest.raises(dsee.InputError, match="no labels"):
        score(model, "taylor", "heads", [batch()])
    assert hooks(model) == before
    assert {module.training for module in model.modules()} == {True}


def test_no_weight_moves():
    model = tiny_bert()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    score(model, "taylor", "neurons", CALIBRATION)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
