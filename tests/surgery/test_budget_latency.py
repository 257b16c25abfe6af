"""A budget in time, with a clock that the test owns: no time is ever asserted."""

import numpy as np
import pytest
import torch

import dsee
from conftest import batch, logits, tiny_bert
from dsee.architectures import layers, structure
from dsee.pruning import LayerPlan
from dsee.surgery import timing


class Clock:
    """Tells a layer's time by its shape: a fixed part, heads, neurons; ``late`` adds to cut layers of a whole model."""

    def __init__(self, late=()):
        self.late, self.calls = list(late), []

    def __call__(self, views, inputs):
        assert len(views) == len(inputs)
        self.calls.append([(view.heads, view.neurons) for view in views])
        times = [1.0 + 0.5 * view.heads + 0.1 * view.neurons for view in views]
        if len(self.calls) > 1 and self.late:
            factor = self.late.pop(0)
            half = len(times) // 2
            times = times[:half] + [factor * t for t in times[half:]]
        return times


@pytest.fixture
def clock(monkeypatch):
    def install(*late):
        made = Clock(late)
        monkeypatch.setattr(timing, "time_layers", made)
        return made

    return install


#: 3 layers of 1 + 2 + 4.
DENSE = 21.0


def spent(model):
    sizes = structure(model)
    return 3.0 + 0.5 * sum(sizes["heads"]) + 0.1 * sum(sizes["neurons"])


def test_the_time_is_kept(family, clock):
    made, model = clock(), family()
    report = dsee.prune(model, dsee.Budget(latency=0.6, score="weight", sequence=16))
    assert spent(model) <= 0.6 * DENSE + 1e-9
    assert spent(model) > 0.6 * DENSE - 0.5
    assert report.budget.measured == pytest.approx(spent(model) / DENSE) == pytest.approx(report.budget.share)
    assert "measured" in str(report)
    # layers of one shape are timed once, then all of them, uncut beside cut
    assert len(made.calls) == 2
    assert made.calls[1] == [(4, 40)] * 3 + list(zip(*structure(model).values(), strict=True))


def test_a_choice_that_measures_too_slow_is_made_again(clock):
    clock(1.2)
    model = tiny_bert()
    report = dsee.prune(model, dsee.Budget(latency=0.6, score="weight", sequence=16))
    assert report.budget.measured <= 0.6 / 1.2 + 1e-9
    assert report.budget.budget.latency == 0.6


@pytest.mark.parametrize("late", [(1.2, 1.5, 2.0, 3.0), (20.0,)])
def test_a_clock_that_never_agrees_cuts_nothing(late, clock):
    """More time than asked for is what nobody asked for: the model stays whole, and the message has the figure."""
    made, model = clock(*late), tiny_bert()
    before, sizes = logits(model), structure(model)
    with pytest.raises(dsee.InputError, match=r"latency=0\.9.* measure \d+\.\d% .* nothing was cut.*busy"):
        dsee.prune(model, dsee.Budget(latency=0.9, score="weight", sequence=16), dsee.Weights(0.5, score="weight"))
    assert len(made.calls) > 1
    assert torch.equal(logits(model), before)
    assert (structure(model), dsee.history(model)) == (sizes, [])


def test_a_model_cut_before_is_refused(clock):
    clock()
    model = tiny_bert()
    dsee.prune(model, dsee.Heads(1, score="weight"))
    with pytest.raises(dsee.OrderError, match="cut before"):
        dsee.prune(model, dsee.Budget(latency=0.5, score="weight", sequence=16))


def test_the_real_clock_leaves_no_trace(family):
    """Whatever it says, the model that was measured is the model that was given."""
    model = family()
    before, config = logits(model), dict(model.config.to_dict())
    views, inputs = layers(model), timing._inputs(model, dsee.Budget(latency=0.9, batch=2, sequence=8))
    costs = timing.measured_costs(views, inputs)
    assert costs.dense > 0
    for tables, size in ((costs.heads, 5), (costs.neurons, 41)):
        assert [table.shape for table in tables] == [(size,)] * 3
        assert all((np.diff(table) >= 0).all() for table in tables)
    assert timing._measured_share(views, [LayerPlan((0,), (1, 2))] * 3, inputs) > 0
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_updates_are_timed_as_merged(clock):
    from conftest import adapted

    seen = []

    class Looking(Clock):
        def __call__(self, views, inputs):
            seen.extend(type(module).__name__ for view in views for module in view.module.modules())
            return super().__call__(views, inputs)

    made = Looking()
    timing_before = timing.time_layers
    timing.time_layers = made
    try:
        model = adapted(tiny_bert())
        dsee.prune(model, dsee.Budget(latency=0.7, score="weight", sequence=16), calibration=[batch(labels=True)])
    finally:
        timing.time_layers = timing_before
    assert "DseeLinear" not in seen
    assert any(type(module).__name__ == "DseeLinear" for module in model.modules())
