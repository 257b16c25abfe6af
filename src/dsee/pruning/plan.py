"""From scores to the heads and neurons that go."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dsee.architectures import LayerView, layers
from dsee.errors import InputError
from dsee.pruning.calibration import Batch
from dsee.pruning.rules import Neurons, Rule
from dsee.pruning.scores import ScoreInput, check_score

#: Below this many neurons a multiple of 8 would miss the ratio by too much.
ROUNDING_FROM = 128
ROUNDING = 8


@dataclass(frozen=True)
class LayerPlan:
    """What goes from one layer, as sorted indices into what it has now.

    Attributes:
        heads: heads to remove.
        neurons: neurons to remove.
    """

    heads: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()


def plan_for(model: nn.Module, rule: Rule, calibration: Iterable[Batch] | None = None) -> list[LayerPlan]:
    """Decide what one rule removes, without removing it.

    Args:
        model: a transformers model with a map, with or without updates.
        rule: the instruction.
        calibration: labelled batches, for scores that need them.

    Returns:
        One plan per layer.

    Raises:
        InputError: the rule asks for nothing, or for more than can go (one head and one neuron stay in each layer).
        ArchitectureError: the family has no map, or its heads cannot be removed.
    """
    views = layers(model)
    for view in views if rule.unit == "heads" else []:
        view.refuse_fixed_heads("prune")
    sizes = [view.heads if rule.unit == "heads" else view.neurons for view in views]
    if isinstance(rule.explicit, Mapping):
        return _as_named(rule.explicit, rule, sizes)
    ranked = check_score(rule.score)(ScoreInput(model, views, rule.unit, rule.seed, calibration))
    _check_scores(rule, views, ranked, sizes)
    if rule.scope == "global":
        counts = _global_counts(ranked, _wanted(rule, sum(sizes), sum(sizes) - len(sizes), "all layers together"))
    else:
        counts = [_wanted(rule, size, size - 1, f"layer {view.index}") for view, size in zip(views, sizes, strict=True)]
    counts = [_rounded(rule, count, size) for count, size in zip(counts, sizes, strict=True)]
    if not any(counts):
        raise InputError(
            f"{rule.amount} of {sizes} {rule.unit}, rounded so that multiples of {_multiple(rule, max(sizes))} remain, "
            "is none. Ask for more, or set a smaller multiple_of."
        )
    chosen = [_lowest(score, count) for score, count in zip(ranked, counts, strict=True)]
    return [LayerPlan(heads=c) if rule.unit == "heads" else LayerPlan(neurons=c) for c in chosen]


def _as_named(explicit: Mapping[int, Sequence[int]], rule: Rule, sizes: list[int]) -> list[LayerPlan]:
    """What an explicit rule names, checked against what is there."""
    for layer, chosen in explicit.items():
        if layer >= len(sizes):
            raise InputError(f"explicit names layer {layer}; the model has layers 0 to {len(sizes) - 1}.")
        if max(chosen) >= sizes[layer]:
            raise InputError(
                f"explicit names {rule.unit} {list(chosen)} of layer {layer}, which has {rule.unit} 0 to "
                f"{sizes[layer] - 1}."
            )
        if len(chosen) == sizes[layer]:
            raise InputError(f"explicit names all {rule.unit} of layer {layer}; at least one has to stay.")
    named = [tuple(explicit.get(layer, ())) for layer in range(len(sizes))]
    return [LayerPlan(heads=c) if rule.unit == "heads" else LayerPlan(neurons=c) for c in named]


def _check_scores(rule: Rule, views: list[LayerView], ranked: list[torch.Tensor], sizes: list[int]) -> None:
    if len(ranked) != len(views):
        raise InputError(f"score={rule.score!r} gave values for {len(ranked)} of {len(views)} layers.")
    for view, score, size in zip(views, ranked, sizes, strict=True):
        if score.shape != (size,):
            raise InputError(f"score={rule.score!r} gave shape {tuple(score.shape)} for {size} {rule.unit}.")
        if not torch.isfinite(score).all():
            raise InputError(f"score={rule.score!r} is NaN or infinite in layer {view.index}: the weights are broken.")


def _wanted(rule: Rule, size: int, most: int, where: str) -> int:
    """How many of ``size`` the rule removes; at most ``most``."""
    count = rule.amount if isinstance(rule.amount, int) else math.floor(float(rule.amount or 0) * size + 0.5)
    if count == 0:
        raise InputError(f"{rule.amount} of the {size} {rule.unit} of {where} is less than one. Use a larger ratio.")
    if count > most:
        raise InputError(
            f"Removing {count} of the {size} {rule.unit} of {where} would empty a layer; at least one stays in each, "
            f"so at most {most} can go."
        )
    return count


def _rounded(rule: Rule, count: int, size: int) -> int:
    """Adjust a count so that what remains is the nearest multiple the rule asks for."""
    multiple = _multiple(rule, size)
    if multiple == 1:
        return count
    kept = multiple * max(1, math.floor((size - count) / multiple + 0.5))
    return max(0, size - kept)


def _multiple(rule: Rule, size: int) -> int:
    """What the remaining number of a layer of ``size`` has to be a multiple of."""
    if not isinstance(rule, Neurons):
        return 1
    if rule.multiple_of is not None:
        return rule.multiple_of
    return ROUNDING if isinstance(rule.amount, float) and size >= ROUNDING_FROM else 1


def _lowest(score: torch.Tensor, count: int) -> tuple[int, ...]:
    """Indices of the ``count`` lowest scores, ascending; the lower index goes first among equals."""
    order = torch.argsort(score.double(), stable=True)[:count]
    return tuple(sorted(int(i) for i in order))


def _global_counts(ranked: list[torch.Tensor], total: int) -> list[int]:
    """Per-layer counts when the ``total`` lowest of all layers go and each layer keeps its best one."""
    candidates = []
    for index, score in enumerate(ranked):
        order = torch.argsort(score.double(), stable=True)[:-1]
        candidates += [(float(score[i]), index, int(i)) for i in order]
    counts = [0] * len(ranked)
    for _, index, _ in sorted(candidates)[:total]:
        counts[index] += 1
    return counts
