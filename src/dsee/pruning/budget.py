"""``dsee.Budget``: say what may remain, and let the scores decide where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from dsee.architectures import LayerView, layers, structure
from dsee.errors import InputError, check_ratio
from dsee.pruning.allocation import Chain, allocate
from dsee.pruning.calibration import Batch
from dsee.pruning.costs import Costs, Structure, counted
from dsee.pruning.plan import ROUNDING, ROUNDING_FROM, LayerPlan, _check_scores
from dsee.pruning.rules import Heads, Neurons
from dsee.pruning.scores import ScoreInput, check_score
from dsee.pruning.silence import silenced

KINDS = ("flops", "latency", "parameters")
#: Scores in units of the loss, which heads and neurons can be compared by as they are.
LOSS_SCORES = ("fisher", "taylor")
#: Four steps kept 2.1 points more than one on MiniLM and SST-2 at half the FLOPs.
STEPS = 4


@dataclass(frozen=True)
class Budget:
    """Remove heads and neurons over all layers jointly until a share of the dense encoder's cost remains.

    The base is the stack of transformer layers before any cut in the model's history: embeddings, pooler and task head
    do not count, nor do updates, which merge. The target is never overshot, and nothing that was removed would fit back
    in. At least one head stays in each layer, and one multiple of neurons.

    Attributes:
        flops: share of the operations of one pass (``dsee.flops(model).encoder``) that may remain.
        latency: share of the time of one pass, measured on this machine with one thread.
        parameters: share of the weights in the layers' matrices (no biases, no norms).
        score: what is given up per cost. "taylor" and "fisher" estimate loss, so heads and neurons compare as they are;
            any other score is divided, for heads and for neurons, by its mean and multiplied by their mean cost, so
            that an average head and an average neuron are worth the same per cost.
        steps: how many times to score, each time without what has been given up so far; None means 4 for "taylor" and
            "fisher", 1 for the others, most of which would say the same again.
        multiple_of: neurons that remain in a layer are a multiple of this; None means 8 in layers of at least 128.
        batch: sentences of the pass that FLOPs or time are for.
        sequence: tokens per sentence.
        seed: seeds the score "random".
    """

    flops: float | None = None
    latency: float | None = None
    parameters: float | None = None
    score: str = "fisher"
    steps: int | None = None
    multiple_of: int | None = None
    batch: int = 1
    sequence: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise InputError(
                f"Budget: give exactly one of {', '.join(f'{kind}=' for kind in KINDS)}, the share that may remain; "
                f"this one has {' and '.join(given) or 'none'}. For example dsee.Budget(flops=0.5)."
            )
        share = getattr(self, given[0])
        if isinstance(share, bool) or not isinstance(share, (int, float)):
            raise InputError(f"Budget: {given[0]}={share!r} is not a share such as 0.5.")
        check_ratio(f"Budget: {given[0]}", share)
        for name in ("steps", "batch", "sequence", "multiple_of"):
            value = getattr(self, name)
            unset = value is None and name in ("steps", "multiple_of")
            if not unset and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"Budget: {name}={value!r} has to be a whole number, at least 1.")
        check_score(self.score)

    @property
    def kind(self) -> str:
        """What is counted: "flops", "latency" or "parameters"."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def share(self) -> float:
        """How much of it may remain."""
        return float(getattr(self, self.kind))

    @property
    def rounds(self) -> int:
        """How many times to score."""
        return self.steps or (STEPS if self.score in LOSS_SCORES else 1)

    def facts(self) -> dict[str, Any]:
        """Return the rule as plain data for the history."""
        shape = {} if self.kind == "parameters" else {"batch": self.batch, "sequence": self.sequence}
        return {
            "rule": "budget",
            self.kind: self.share,
            "score": self.score,
            "steps": self.rounds,
            "multiple_of": self.multiple_of,
            "seed": self.seed,
            **shape,
        }


@dataclass(frozen=True)
class Choice:
    """What a budget chose; ``print`` it for a table of the layers.

    Attributes:
        budget: the rule.
        plans: what goes, layer by layer.
        before: heads and neurons of each layer before.
        after: the same afterwards.
        share: what remains of the dense encoder's cost, as counted or, for latency, as the table predicts.
        measured: for latency, the share that was measured on a copy of the cut layers.
    """

    budget: Budget
    plans: list[LayerPlan]
    before: Structure
    after: Structure
    share: float
    measured: float | None = None

    def __str__(self) -> str:
        measured = "" if self.measured is None else f", measured {self.measured:.1%}"
        asked = f"at most {self.budget.share:.1%} asked for"
        lines = [
            f"{self.share:.1%}{measured} of the dense encoder's {self.budget.kind} remain ({asked})",
            "layer      heads         neurons",
        ]
        for i, (was, now) in enumerate(zip(_rows(self.before), _rows(self.after), strict=True)):
            lines.append(f"{i:5}  {now[0]:4} of {was[0]:<4} {now[1]:6} of {was[1]}")
        return "\n".join(lines)


def _rows(sizes: Structure) -> list[tuple[int, int]]:
    return list(zip(sizes["heads"], sizes["neurons"], strict=True))


def choose(
    model: nn.Module, budget: Budget, calibration: Iterable[Batch] | None = None, costs: Costs | None = None
) -> Choice:
    """Decide what a budget removes, without removing it.

    Args:
        model: a transformers model with a map, with or without updates.
        budget: the instruction.
        calibration: labelled batches, for scores that need them.
        costs: what heads and neurons cost; counted for FLOPs and parameters if not given.

    Returns:
        The plan and what it comes to.

    Raises:
        InputError: the target is below what one head and a few neurons in each layer cost, or is met already; or a
            latency without measured costs.
    """
    if costs is None:
        if budget.kind == "latency":
            raise InputError("Budget(latency=...) needs measured costs: use dsee.prune, which measures them.")
        costs = counted(model, budget.kind, budget.batch, budget.sequence)
    views, before = layers(model), structure(model)
    target, now = budget.share * costs.dense, costs.of(before)
    if now <= target:
        raise InputError(
            f"Budget({budget.kind}={budget.share}): {now / costs.dense:.1%} of the dense encoder remain already, so "
            "there is nothing to remove. Ask for a smaller share."
        )
    batches = list(calibration) if calibration is not None else None
    # heads of all layers, then neurons of all layers, each in the order in which they went
    gone: list[list[int]] = [[] for _ in range(2 * len(views))]
    for step in range(1, budget.rounds + 1):
        goal = now + (target - now) * step / budget.rounds if step < budget.rounds else target
        with silenced(views, _plans(gone)):
            shared: dict[str, list[torch.Tensor]] = {}
            ranked = {unit: _ranked(model, views, unit, budget, batches, shared) for unit in ("heads", "neurons")}
        gone = _further(views, gone, ranked, costs, goal, budget)
    plans = _plans(gone)
    after = {
        "heads": [n - len(plan.heads) for n, plan in zip(before["heads"], plans, strict=True)],
        "neurons": [n - len(plan.neurons) for n, plan in zip(before["neurons"], plans, strict=True)],
    }
    return Choice(budget, plans, before, after, costs.of(after) / costs.dense)


def _plans(gone: list[list[int]]) -> list[LayerPlan]:
    half = len(gone) // 2
    return [
        LayerPlan(tuple(sorted(heads)), tuple(sorted(neurons)))
        for heads, neurons in zip(gone[:half], gone[half:], strict=True)
    ]


def _ranked(
    model: nn.Module,
    views: list[LayerView],
    unit: Any,
    budget: Budget,
    batches: list[Batch] | None,
    shared: dict[str, list[torch.Tensor]],
) -> list[torch.Tensor]:
    ranked = check_score(budget.score)(ScoreInput(model, views, unit, budget.seed, batches, shared))
    rule = (Heads if unit == "heads" else Neurons)(1, score=budget.score)
    _check_scores(rule, views, ranked, [getattr(view, unit) for view in views])
    return [score.double() for score in ranked]


def _further(
    views: list[LayerView],
    gone: list[list[int]],
    ranked: dict[str, list[torch.Tensor]],
    costs: Costs,
    target: float,
    budget: Budget,
) -> list[list[int]]:
    """Go on from what has been given up so far; what went first comes back last."""
    chains: list[Chain] = []
    orders: list[list[int]] = []
    for unit, tables in (("heads", costs.heads), ("neurons", costs.neurons)):
        gone_here = gone[len(chains) : len(chains) + len(views)]
        left = [_left(getattr(view, unit), removed) for view, removed in zip(views, gone_here, strict=True)]
        values = [score[rest] for score, rest in zip(ranked[unit], left, strict=True)]
        scale = 1.0 if budget.score in LOSS_SCORES else _per_cost(values, tables)
        for view, removed, rest, value, table in zip(views, gone_here, left, values, tables, strict=True):
            # the lower index goes first among equals
            order = torch.argsort(value, stable=True)
            orders.append([*removed, *(rest[i] for i in order.tolist())])
            lost = np.concatenate([np.zeros(len(removed) + 1), np.cumsum((value[order] * scale).numpy())])
            size = getattr(view, unit)
            removals = _removals(size, 1 if unit == "heads" else _multiple(budget, size))
            if unit == "heads" and view.architecture.fixed_heads:
                removals = [0]
            kept = [size - count for count in removals]
            chains.append(Chain(removals, lost[removals], table[kept], removals.index(len(removed))))
    counts = allocate(chains, target, costs.dense, f"Budget({budget.kind}={budget.share})")
    return [order[:count] for order, count in zip(orders, counts, strict=True)]


def _left(size: int, removed: list[int]) -> list[int]:
    return [i for i in range(size) if i not in set(removed)]


def _per_cost(values: list[torch.Tensor], tables: list[Any]) -> float:
    """What turns a unit's scores into their mean cost on average."""
    mean = float(torch.cat(values).abs().mean())
    spent = sum(float(table[len(value)] - table[0]) for value, table in zip(values, tables, strict=True))
    return spent / sum(len(value) for value in values) / mean if mean > 0 else 1.0


def _multiple(budget: Budget, size: int) -> int:
    if budget.multiple_of is not None:
        return budget.multiple_of
    return ROUNDING if size >= ROUNDING_FROM else 1


def _removals(size: int, multiple: int) -> list[int]:
    """How many of ``size`` may go: none, or so many that a multiple remains."""
    return [0, *(size - kept for kept in range((size - 1) // multiple * multiple, 0, -multiple))]


def with_share(budget: Budget, share: float) -> Budget:
    """Return the same budget with another target.

    Args:
        budget: the rule.
        share: what may remain.
    """
    changes: dict[str, Any] = {budget.kind: share}
    return replace(budget, **changes)
