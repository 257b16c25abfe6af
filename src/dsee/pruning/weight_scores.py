"""Importance of single weights. A score of one's own is one decorated function."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from dsee.errors import InputError, OrderError, listed, nearest
from dsee.pruning.calibration import Batch
from dsee.pruning.targets import Target
from dsee.pruning.weight_gradients import input_square_sums, mean_absolute_gradients, mean_squared_gradients


@dataclass(frozen=True)
class WeightScoreInput:
    """What a score of weights may look at.

    Attributes:
        model: the model.
        targets: the matrices in question; each has ``name``, ``weight``, ``delta`` and ``effective``, (out, in) fp32.
        seed: for scores that draw.
        calibration: batches, for scores that look at data.
    """

    model: nn.Module
    targets: Sequence[Target]
    seed: int
    calibration: Iterable[Batch] | None


#: A score returns, for each target's name, one number per weight, (out, in) also for Conv1D; large means keep.
WeightScore = Callable[[WeightScoreInput], dict[str, torch.Tensor]]
WeightScoreT = TypeVar("WeightScoreT", bound=WeightScore)

_WEIGHT_SCORES: dict[str, WeightScore] = {}
#: Names of those that cannot do without calibration batches, and what these have to be.
_NEEDS: dict[str, str] = {}


def register_weight_score(name: str, needs: str = "") -> Callable[[WeightScoreT], WeightScoreT]:
    """Make a function available as ``score=name`` of :class:`dsee.Weights`, ``Blocks`` and ``NofM``.

    Args:
        name: the name used in rules and recipes.
        needs: what calibration it cannot do without, "batches" or "batches with labels"; "" if it can.
    """

    def add(score: WeightScoreT) -> WeightScoreT:
        _WEIGHT_SCORES[name] = score
        _NEEDS.pop(name, None)
        if needs:
            _NEEDS[name] = needs
        return score

    return add


def weight_scores() -> list[str]:
    """Return the names of all registered scores of weights, sorted."""
    return sorted(_WEIGHT_SCORES)


def check_weight_score(name: str) -> WeightScore:
    """Return the score of that name.

    Raises:
        InputError: there is none.
    """
    if name not in _WEIGHT_SCORES:
        raise InputError(
            f"score={name!r} is not a score of weights.{nearest(name, _WEIGHT_SCORES)} "
            f"Known: {listed(weight_scores())}."
        )
    return _WEIGHT_SCORES[name]


def check_calibration(name: str, calibration: Iterable[Batch] | None) -> None:
    """Make sure that a score has the data it needs.

    Args:
        name: the score.
        calibration: what there is.

    Raises:
        InputError: there is none, and the score needs some.
    """
    if calibration is None and name in _NEEDS:
        raise InputError(
            f"score={name!r} looks at data: pass calibration=, an iterable of {_NEEDS[name]} (a DataLoader of a few "
            "hundred training examples will do), or use score='weight'."
        )


@register_weight_score("update")
@torch.no_grad()
def update_weight_score(given: WeightScoreInput) -> dict[str, torch.Tensor]:
    """Score by |s (U V + S2)| where there is an update and by |W| elsewhere (DSEE, section 3.3; "ABS" in its code).

    Raises:
        OrderError: no matrix carries an update, or every update is still zero.
    """
    deltas = {target.name: target.delta for target in given.targets}
    if all(delta is None for delta in deltas.values()):
        raise OrderError(
            "score='update' ranks weights by their update, but none of the matrices carries one. Tune first, or use "
            "score='weight', or score='fisher' with calibration=."
        )
    if not any(delta.any() for delta in deltas.values() if delta is not None):
        raise OrderError(
            "score='update': the update is still zero and ranks nothing. Tune first, or use another score."
        )
    scores = {}
    for target in given.targets:
        score, delta = target.weight.abs(), deltas[target.name]
        if delta is not None:
            for start, stop in target.updated_rows:
                score[start:stop] = delta[start:stop].abs()
        scores[target.name] = score
    return scores


@register_weight_score("weight")
@torch.no_grad()
def weight_weight_score(given: WeightScoreInput) -> dict[str, torch.Tensor]:
    """Score by |W|."""
    return {target.name: target.weight.abs() for target in given.targets}


@register_weight_score("weight+update")
@torch.no_grad()
def weight_update_weight_score(given: WeightScoreInput) -> dict[str, torch.Tensor]:
    """Score by |W + dW|, the update with its full scale s (the authors' code left s out of the low-rank part)."""
    return {target.name: target.effective.abs() for target in given.targets}


@register_weight_score("random")
def random_weight_score(given: WeightScoreInput) -> dict[str, torch.Tensor]:
    """Score by uniform noise, the control; each matrix has a seed of its own, made from its name."""
    scores = {}
    for target in given.targets:
        seed = (given.seed * 0x9E3779B1 + zlib.crc32(target.name.encode())) % 2**63
        scores[target.name] = torch.rand(target.shape, generator=torch.Generator().manual_seed(seed))
    return scores


@register_weight_score("taylor", needs="batches with labels")
def taylor_weight_score(given: WeightScoreInput) -> dict[str, torch.Tensor]:
    """Score by |W + dW| times the mean of |dLoss/d(W + dW)| over the batches: the first-order cost of a zero there.

    Raises:
        InputError: no calibration batches, or batches without labels.
    """
    gradients = mean_absolute_gradients(given.model, given.targets, given.calibration or ())
    with torch.no_grad():
        return {t.name: gradients[t.name].mul_(t.effective.abs()) for t in given.targets}


@register_weight_score("fisher", needs="batches with labels")
def fisher_weight_score(given: WeightScoreInput) -> dict[str, torch.Tensor]:
    """Score by (W + dW)^2 times the mean of (dLoss/d(W + dW))^2 over the batches: the diagonal Fisher estimate.

    The gradient is that of a batch's mean loss, so the ranking, though not its scale, depends a little on the batches'
    size (Kurtic et al. 2022 and Kwon et al. 2022 do likewise).

    Raises:
        InputError: no calibration batches, or batches without labels.
    """
    gradients = mean_squared_gradients(given.model, given.targets, given.calibration or ())
    with torch.no_grad():
        return {t.name: gradients[t.name].mul_(t.effective.square()) for t in given.targets}


@register_weight_score("wanda", needs="batches")
def wanda_weight_score(given: WeightScoreInput) -> dict[str, torch.Tensor]:
    """Score by |W + dW| times the norm of the input feature over all calibration tokens (Sun et al. 2024).

    Labels are not needed. Wanda compares within a matrix, so ``scope="layer"`` is nearer to it than "global".

    Raises:
        InputError: no calibration batches.
    """
    squares = input_square_sums(given.model, given.targets, given.calibration or ())
    with torch.no_grad():
        return {t.name: t.effective.abs() * squares[t.name].sqrt().to(t.weight) for t in given.targets}
