"""A budget in time: layers cut to several widths, timed on this machine, and the choice checked the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dsee.architectures import LayerView, base_model, layers, structure
from dsee.architectures._registry import plain_model
from dsee.errors import ArchitectureError, InputError, OrderError
from dsee.measure.latency import interleaved
from dsee.measure.sample import sample_inputs
from dsee.modes import evaluating
from dsee.pruning.budget import Budget, Choice, choose, with_share
from dsee.pruning.calibration import Batch
from dsee.pruning.costs import Costs, dense_structure
from dsee.pruning.plan import ROUNDING, LayerPlan
from dsee.surgery.cut import _cut_heads, _cut_neurons
from dsee.update.layer import DseeLayer

#: Timed calls of each variant, and how often a choice that measures too slow is made again with a smaller target.
RUNS, ROUNDS = 15, 4
#: Of sums of milliseconds, not of the clock.
ROUNDING_ERROR = 1e-9
#: Shares of a layer's heads and of its neurons that are timed; what lies between is interpolated.
GRID = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)

Captured = tuple[tuple[Any, ...], dict[str, Any]]


def choose_within(model: nn.Module, budget: Budget, calibration: Iterable[Batch] | None = None) -> Choice:
    """Decide what a budget removes, measuring first if it is one in time.

    A layer's time is taken for T(heads, all neurons) + T(all heads, neurons) - T(all), each interpolated. The choice is
    then cut on copies of the layers and timed beside the dense ones; if it is slower than asked for, it is made again
    for a target smaller by as much.

    Args:
        model: a transformers model with a map.
        budget: the instruction.
        calibration: labelled batches, for scores that need them.

    Returns:
        The plan and what it comes to.

    Raises:
        OrderError: a latency is asked for, but the model was cut before, so that dense layers cannot be timed.
        ArchitectureError: a latency is asked for, and the model has an encoder and a decoder.
        InputError: the target cannot be met or is met already; or what was chosen for it measures slower each time.
    """
    if budget.kind != "latency":
        return choose(model, budget, calibration)
    if getattr(plain_model(model).config, "is_encoder_decoder", False):
        raise ArchitectureError(
            "Budget(latency=...) times one pass through one stack of layers; a model with an encoder and a decoder has "
            "two, run a different number of times. Use flops=."
        )
    if dense_structure(model) != structure(model):
        raise OrderError(
            "Budget(latency=...) times the dense layers, but this model has been cut before. Give the uncut model, or "
            "use flops=."
        )
    batches = list(calibration) if calibration is not None else None
    with evaluating(model):
        views, inputs = layers(model), _inputs(model, budget)
        costs = measured_costs(views, inputs)
        asked = budget
        for round_number in range(ROUNDS):
            try:
                choice = choose(model, asked, batches, costs)
            except InputError:
                # that a target of our own making cannot be met is nothing to tell the user
                if not round_number:
                    raise
                break
            share = _measured_share(views, choice.plans, inputs)
            if share <= budget.share + ROUNDING_ERROR:
                break
            asked = with_share(asked, asked.share * budget.share / share)
    if share > budget.share + ROUNDING_ERROR:
        raise InputError(
            f"Budget(latency={budget.share}): the layers chosen measure {share:.1%} of the dense ones' time all the "
            "same, so nothing was cut. The machine may be busy: try again, ask for another share, or use flops=."
        )
    return replace(choice, budget=budget, measured=share)


def measured_costs(views: list[LayerView], inputs: list[Captured]) -> Costs:
    """Time layers at several widths, layers of equal shape once.

    Args:
        views: the dense layers.
        inputs: what each is called with.

    Returns:
        Milliseconds; a layer's neurons carry the difference to all of them, its heads the rest.
    """
    tables: dict[tuple[Any, ...], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for view, given in zip(views, inputs, strict=True):
        if _shapes(view) not in tables:
            tables[_shapes(view)] = _tables(view, given)
    found = [tables[_shapes(view)] for view in views]
    costs = Costs([heads for heads, _ in found], [neurons for _, neurons in found], 0.0)
    sizes = {"heads": [view.heads for view in views], "neurons": [view.neurons for view in views]}
    return Costs(costs.heads, costs.neurons, costs.of(sizes))


def _shapes(view: LayerView) -> tuple[Any, ...]:
    return tuple(tuple(parameter.shape) for parameter in _bare_copy(view, meta=True).module.parameters())


def _tables(view: LayerView, given: Captured) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    shares = (1.0,) if view.architecture.fixed_heads else GRID
    heads = sorted({max(1, round(share * view.heads)) for share in shares})
    neurons = sorted({max(1, _near(share * view.neurons, view.neurons)) for share in GRID})
    plans = [LayerPlan(heads=tuple(range(n, view.heads))) for n in heads]
    plans += [LayerPlan(neurons=tuple(range(n, view.neurons))) for n in neurons]
    times = time_layers([_cut_copy(view, plan) for plan in plans], [given] * len(plans))
    of_heads, of_neurons = np.array(times[: len(heads)]), np.array(times[len(heads) :])
    full = float(min(of_heads[-1], of_neurons[-1]))
    # more never costs less: what the clock says otherwise is noise
    of_heads, of_neurons = np.maximum.accumulate(of_heads), np.maximum.accumulate(of_neurons)
    whole = [np.interp(np.arange(view.heads + 1), heads, of_heads * full / of_heads[-1])]
    whole += [np.interp(np.arange(view.neurons + 1), neurons, of_neurons * full / of_neurons[-1])]
    return whole[0], whole[1] - full


def _near(width: float, most: int) -> int:
    """A width that the rules would leave."""
    return most if width >= most else max(1, round(width / ROUNDING)) * ROUNDING if most >= ROUNDING else round(width)


def _bare_copy(view: LayerView, meta: bool = False) -> LayerView:
    """The layer by itself, without updates: they merge before anything is deployed."""
    copy = deepcopy(view.module)
    for name, module in list(copy.named_modules()):
        if isinstance(module, DseeLayer):
            parent, _, last = name.rpartition(".")
            setattr(copy.get_submodule(parent), last, module.get_base_layer())
    return replace(view, module=copy.to("meta") if meta else copy)


def _cut_copy(view: LayerView, plan: LayerPlan) -> LayerView:
    copy = _bare_copy(view)
    if plan.heads:
        _cut_heads(copy, plan.heads)
    if plan.neurons:
        _cut_neurons(copy, plan.neurons)
    return copy


def _inputs(model: nn.Module, budget: Budget) -> list[Captured]:
    """What each layer is called with for a random batch of the budget's shape."""
    captured: dict[int, Captured] = {}

    def capture(index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured[index] = (args, kwargs)

        return hook

    views = layers(model)
    hooks = [view.module.register_forward_pre_hook(capture(view.index), with_kwargs=True) for view in views]
    config = plain_model(model).config
    cached = getattr(config, "use_cache", None)
    try:
        if cached is not None:
            # a cache would grow with each timed call
            config.use_cache = False
        with torch.inference_mode():
            base_model(model)(**sample_inputs(model, budget.batch, budget.sequence))
    finally:
        if cached is not None:
            config.use_cache = cached
        for hook in hooks:
            hook.remove()
    return [captured[view.index] for view in views]


def _measured_share(views: list[LayerView], plans: list[LayerPlan], inputs: list[Captured]) -> float:
    """Time of all layers cut by the plans, over the time of all of them uncut."""
    dense = [_bare_copy(view) for view in views]
    small = [_cut_copy(view, plan) for view, plan in zip(views, plans, strict=True)]
    times = time_layers(dense + small, inputs + inputs)
    return sum(times[len(views) :]) / sum(times[: len(views)])


def time_layers(views: list[LayerView], inputs: list[Captured]) -> list[float]:
    """Time layers against each other, interleaved, on one thread.

    Args:
        views: the layers.
        inputs: what each is called with.

    Returns:
        Median milliseconds of each: of CPU time where the work is done on the CPU, else of wall time.
    """
    calls: dict[str, Callable[[], Any]] = {
        str(i): partial(view.module, *given[0], **given[1])
        for i, (view, given) in enumerate(zip(views, inputs, strict=True))
    }
    found = interleaved(calls, runs=RUNS)
    on_cpu = next(views[0].module.parameters()).device.type == "cpu"
    return [found[name].cpu_ms if on_cpu else found[name].p50_ms for name in calls]
