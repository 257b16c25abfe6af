"""Importance of heads and neurons. A score of one's own is one decorated function."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from dsee.architectures import LayerView
from dsee.errors import InputError, OrderError, listed, nearest
from dsee.pruning.calibration import Batch, first_order
from dsee.update.layer import DseeLayer


@dataclass(frozen=True)
class ScoreInput:
    """What a score may look at.

    Attributes:
        model: the model.
        layers: its layers, seen through the architecture map.
        unit: "heads" or "neurons".
        seed: for scores that draw.
        calibration: labelled batches, for scores that look at data.
        shared: kept from one unit to the other, if both are scored in the same state, so that data is seen once.
    """

    model: nn.Module
    layers: list[LayerView]
    unit: Literal["heads", "neurons"]
    seed: int
    calibration: Iterable[Batch] | None
    shared: dict[str, list[torch.Tensor]] | None = None


#: A score returns, for each layer, one number per head or neuron, shape (heads,) or (neurons,); large means keep.
Score = Callable[[ScoreInput], list[torch.Tensor]]
ScoreT = TypeVar("ScoreT", bound=Score)

_SCORES: dict[str, Score] = {}


def register_score(name: str) -> Callable[[ScoreT], ScoreT]:
    """Make a function available as ``score=name``.

    Args:
        name: the name used in rules and recipes.
    """

    def add(score: ScoreT) -> ScoreT:
        _SCORES[name] = score
        return score

    return add


def scores() -> list[str]:
    """Return the names of all registered scores, sorted."""
    return sorted(_SCORES)


def check_score(name: str) -> Score:
    """Return the score of that name.

    Raises:
        InputError: there is none.
    """
    if name not in _SCORES:
        raise InputError(f"score={name!r} is not a score.{nearest(name, _SCORES)} Known: {listed(scores())}.")
    return _SCORES[name]


def _delta(linear: Any) -> torch.Tensor | None:
    """Sum of the active updates of a linear, (out, in), fp32; None without one."""
    if not isinstance(linear, DseeLayer):
        return None
    deltas = [linear.get_delta_weight(name).float() for name in linear.active_adapters if linear.has_update(name)]
    if not deltas:
        return None
    total = torch.stack(deltas).sum(0)
    return total.T if linear.transposed else total


def _rows(matrix: torch.Tensor, width: int) -> torch.Tensor:
    """Sum of |entries| over each head's output rows, (heads,)."""
    return matrix.abs().sum(1).view(-1, width).sum(1)


def _columns(matrix: torch.Tensor, width: int) -> torch.Tensor:
    """Sum of |entries| over each head's input columns, (heads,)."""
    return matrix.abs().sum(0).view(-1, width).sum(1)


@register_score("update")
@torch.no_grad()
def update_score(given: ScoreInput) -> list[torch.Tensor]:
    """Sum of |s (U V + S2)|: over a head's query and value rows (DSEE, section 3.3), or a neuron's rows and column.

    Raises:
        OrderError: the layers in question carry no update, or one that is still zero.
    """
    result = []
    for view in given.layers:
        names = ("query", "value") if given.unit == "heads" else view.names("neurons")
        found = [(part, delta) for part in names if (delta := _delta(view.part(part))) is not None]
        parts = [
            _rows(delta[view.rows(part)], view.width(part) if given.unit == "heads" else 1) for part, delta in found
        ]
        out = _delta(view.part("ffn_out")) if given.unit == "neurons" else None
        parts += [] if out is None else [out.abs().sum(0)]
        if not parts:
            where = "query and value" if given.unit == "heads" else "feed-forward"
            raise OrderError(
                f"score='update' ranks {given.unit} by their update, but the {where} projections of layer {view.index} "
                "carry none. Tune first with these among target_modules, or use score='weight' or score='taylor'."
            )
        result.append(torch.stack(parts).sum(0))
    if not any(score.any() for score in result):
        raise OrderError(
            "score='update': the update is still zero and ranks nothing. Tune first, or use another score."
        )
    return result


def _weight_like(given: ScoreInput, with_update: bool) -> list[torch.Tensor]:
    def matrix(view: LayerView, part: str) -> torch.Tensor:
        delta = _delta(view.part(part)) if with_update else None
        weight = view.matrix(part).float()
        return weight if delta is None else weight + delta[view.rows(part)]

    result = []
    for view in given.layers:
        heads = given.unit == "heads"
        total = sum(_rows(matrix(view, part), view.width(part) if heads else 1) for part in view.names(given.unit))
        last = "output" if heads else "ffn_out"
        result.append(total + _columns(matrix(view, last), view.width(last) if heads else 1))
    return result


@register_score("weight")
@torch.no_grad()
def weight_score(given: ScoreInput) -> list[torch.Tensor]:
    """Sum of |W| over the weights that would go: query, key, value and output, or both sides of a neuron."""
    return _weight_like(given, with_update=False)


@register_score("weight+update")
@torch.no_grad()
def weight_update_score(given: ScoreInput) -> list[torch.Tensor]:
    """Sum of |W + dW| over the same weights."""
    return _weight_like(given, with_update=True)


@register_score("random")
def random_score(given: ScoreInput) -> list[torch.Tensor]:
    """Uniform noise, the control."""
    generator = torch.Generator().manual_seed(given.seed)
    sizes = [view.heads if given.unit == "heads" else view.neurons for view in given.layers]
    return [torch.rand(size, generator=generator) for size in sizes]


@register_score("taylor")
def taylor_score(given: ScoreInput) -> list[torch.Tensor]:
    """First-order estimate of the loss that removal costs: mean over examples of |sum of activation x gradient|.

    For a gate g = 1 on a head or neuron, dLoss/dg is that sum (Michel, Levy and Neubig 2019; Molchanov et al. 2017).
    A language model's loss is a mean over tokens, so that longer examples of one batch count for more.

    Raises:
        InputError: no calibration batches, or batches without labels.
    """
    return [sums.abs().mean(0) for sums in _gate_gradients(given, "taylor")]


def _gate_gradients(given: ScoreInput, name: str) -> list[torch.Tensor]:
    """Sum of activation x gradient for each example and head or neuron, (examples, units)."""
    if given.calibration is None:
        raise InputError(
            f"score={name!r} looks at data: pass calibration=, an iterable of batches with labels (a DataLoader of a "
            "few hundred training examples will do), or use score='weight'."
        )
    if given.shared and given.unit in given.shared:
        return given.shared[given.unit]
    units = {"heads": "output", "neurons": "ffn_out"}
    asked = [given.unit] if given.shared is None else list(units)
    linears = [view.part(units[unit]) for unit in asked for view in given.layers]
    per_feature = iter(first_order(given.model, linears, given.calibration))
    found = {
        unit: [
            # in this order, so that zip takes no more than it needs
            x.view(x.shape[0], getattr(view, unit), -1).sum(2)
            for view, x in zip(given.layers, per_feature, strict=False)
        ]
        for unit in asked
    }
    if given.shared is not None:
        given.shared.update(found)
    return found[given.unit]


@register_score("fisher")
def fisher_score(given: ScoreInput) -> list[torch.Tensor]:
    """Second-order estimate of the same: mean over examples of (sum of activation x gradient)^2, halved.

    That mean is the diagonal of the empirical Fisher information of the gates, which stands for the loss's curvature
    near a minimum: removing a gate g = 1 costs F / 2 (Theis et al. 2018; Liu et al. 2021, group Fisher pruning).

    Raises:
        InputError: no calibration batches, or batches without labels.
    """
    return [0.5 * sums.square().mean(0) for sums in _gate_gradients(given, "fisher")]
