"""Timing: finite, ordered, and without a trace; how long anything takes is never asserted."""

import math

import pytest
import torch

import dsee
from conftest import adapted, tiny_bert
from dsee.measure import interleaved


@pytest.mark.parametrize("updated", [False, True])
def test_times_are_finite_and_ordered(family, updated):
    model = adapted(family()) if updated else family()
    found = dsee.latency(model, batch=2, sequence=9, runs=4, warmup=1)
    assert all(math.isfinite(value) for value in (found.p50_ms, found.p95_ms, found.cpu_ms))
    assert 0 < found.p50_ms <= found.p95_ms
    assert found.cpu_ms >= 0
    assert (found.runs, found.threads) == (4, 1)


def test_a_cut_model_is_timed():
    model = tiny_bert()
    dsee.prune(model, dsee.Heads(3, score="weight"), dsee.Neurons(39))
    assert dsee.latency(model, sequence=9, runs=1).p50_ms > 0


def test_the_model_runs_as_often_as_said_in_eval_mode_without_gradients():
    model, seen = tiny_bert().train(), []

    def note(module, args, kwargs):
        seen.append((module.training, torch.is_inference_mode_enabled(), kwargs["input_ids"].shape))

    model.register_forward_pre_hook(note, with_kwargs=True)
    dsee.latency(model, batch=2, sequence=7, runs=4, warmup=2)
    assert seen == [(False, True, (2, 7))] * 6


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_is_restored(training):
    model = adapted(tiny_bert()).train(training)
    dsee.latency(model, sequence=5, runs=1)
    assert {module.training for module in model.modules()} == {training}


def test_a_part_the_user_put_in_eval_mode_stays_there():
    model = tiny_bert().train()
    model.bert.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    dsee.latency(model, sequence=5, runs=1)
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_the_mode_is_restored_after_a_failure():
    model = tiny_bert().train()
    model.register_forward_pre_hook(fail)
    with pytest.raises(OSError, match="on purpose"):
        dsee.latency(model, sequence=5, runs=1)
    assert model.training


def fail(*_):
    raise OSError("on purpose")


def test_threads_are_set_inside_and_restored_outside():
    inside = []
    assert torch.get_num_threads() == 1
    found = interleaved({"call": lambda: inside.append(torch.get_num_threads())}, runs=2, warmup=0, threads=2)
    assert inside == [2, 2]
    assert found["call"].threads == 2
    assert torch.get_num_threads() == 1


def test_threads_are_restored_after_a_failure():
    with pytest.raises(OSError, match="on purpose"):
        interleaved({"call": fail}, threads=2)
    assert torch.get_num_threads() == 1


def test_variants_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    found = interleaved(calls, runs=2, warmup=1)
    assert "".join(order) == "abcabcabc"
    assert list(found) == ["a", "b", "c"]
    assert {each.runs for each in found.values()} == {2}


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"runs": -1}, {"warmup": -1}, {"threads": 0}])
def test_counts_that_make_no_sense_are_refused(wrong):
    with pytest.raises(dsee.InputError, match="at least 1"):
        dsee.latency(tiny_bert(), sequence=5, **wrong)
    with pytest.raises(dsee.InputError, match="at least 1"):
        interleaved({"call": fail}, **wrong)


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"batch": -1}, {"sequence": 0}, {"sequence": -5}])
def test_sizes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(dsee.InputError, match="at least 1"):
        dsee.latency(tiny_bert(), **({"runs": 1, "sequence": 5} | wrong))
