"""``dsee.prune``: choose by rules, cut, then mask what is left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dsee.architectures import structure
from dsee.errors import ArchitectureError, InputError
from dsee.kernels.linear import refuse_on_kernels
from dsee.masks import oriented
from dsee.pruning.budget import Budget, Choice
from dsee.pruning.calibration import Batch
from dsee.pruning.mask_order import check_cut_after_masks, shapes_after
from dsee.pruning.mask_plan import apply_masks, check_mask_rule, masks_for
from dsee.pruning.mask_rules import MaskRule
from dsee.pruning.plan import LayerPlan, plan_for
from dsee.pruning.rules import Rule
from dsee.pruning.targets import mask_targets
from dsee.pruning.weight_scores import check_calibration
from dsee.steps import record
from dsee.surgery.cut import cut
from dsee.surgery.timing import choose_within


@dataclass(frozen=True)
class MatrixZeros:
    """Exact zeros of one matrix.

    Attributes:
        before: zeros before the masks of this call, cuts already made.
        after: zeros afterwards.
        weights: all its weights.
    """

    before: int
    after: int
    weights: int


@dataclass(frozen=True)
class PruneReport:
    """What a call to :func:`prune` did.

    Attributes:
        before: heads and neurons of each layer before; empty without an architecture map.
        after: the same afterwards.
        plans: what each rule removed, one list of layer plans per rule for heads or neurons.
        zeros: of each matrix that a rule for weights was about, by its path in the transformers model.
        budget: what a budget chose, if one was among the rules.
    """

    before: dict[str, list[int]]
    after: dict[str, list[int]]
    plans: tuple[list[LayerPlan], ...]
    zeros: dict[str, MatrixZeros] = field(default_factory=dict)
    budget: Choice | None = None

    def __str__(self) -> str:
        lines = []
        for unit in self.before if self.plans or not self.zeros else ():
            was, now = self.before[unit], self.after[unit]
            layerwise = " ".join(str(n) for n in now)
            lines.append(
                f"{unit}: {sum(was)} -> {sum(now)} ({1 - sum(now) / sum(was):.1%} removed; by layer: {layerwise})"
            )
        if self.zeros:
            found = self.zeros.values()
            weights = sum(matrix.weights for matrix in found)
            shares = [matrix.after / matrix.weights for matrix in found]
            before, after = sum(m.before for m in found) / weights, sum(m.after for m in found) / weights
            lines.append(
                f"zeros: {before:.1%} -> {after:.1%} of {weights:,} weights in {len(shares)} matrices "
                f"(by matrix: {min(shares):.1%} to {max(shares):.1%})"
            )
        return "\n".join(lines if self.budget is None else [*lines, str(self.budget)])


def prune(
    model: nn.Module, *rules: Rule | Budget | MaskRule, calibration: Iterable[Batch] | None = None
) -> PruneReport:
    """Remove what the task does not need, in place.

    All rules for heads and neurons are decided on the model as it is given, then carried out, so their order makes no
    difference to the choice. Rules for weights follow, in their order, on what is left. A weight that is masked stays
    masked, and counts towards the ratio of a later rule. After pruning, tune again with a fresh optimizer to recover.

    Args:
        model: a transformers model of a mapped family, bare or wrapped by PEFT. Rules for weights with ``targets=`` do
            without a map.
        *rules: :class:`dsee.Heads`, :class:`dsee.Neurons`, each unit at most once, or a :class:`dsee.Budget` for
            both; and :class:`dsee.Weights`, :class:`dsee.Blocks`, :class:`dsee.NofM`.
        calibration: batches (dicts of tensors with labels) for scores that look at data; a DataLoader will do.

    Returns:
        What was removed.

    Raises:
        InputError: no rule, two rules for one unit, or a rule that cannot be met.
        ArchitectureError: the family has no map.
        OrderError: an update is merged, a layer runs on the kernels, the score needs an update that is not there, or
            an earlier mask would not survive. If it is a rule for weights that fails, cuts of the same call have been
            made and are in the history.
    """
    if not rules:
        raise InputError("prune: give at least one rule, for example dsee.Heads(0.25).")
    refuse_on_kernels(model, "prune")
    cuts = [rule for rule in rules if not isinstance(rule, MaskRule)]
    masks = [rule for rule in rules if isinstance(rule, MaskRule)]
    units = [unit for rule in cuts for unit in (("heads", "neurons") if isinstance(rule, Budget) else (rule.unit,))]
    if len(set(units)) != len(units):
        raise InputError(
            "prune: two rules for the same unit (a budget is one for heads and neurons); call prune twice if meant."
        )
    # a generator would be empty for the second rule
    batches = list(calibration) if calibration is not None else None
    choices = [choose_within(model, rule, batches) if isinstance(rule, Budget) else None for rule in cuts]
    plans = tuple(
        plan_for(model, rule, batches) if isinstance(rule, Rule) else choice.plans  # type: ignore[union-attr]  # a budget has one
        for rule, choice in zip(cuts, choices, strict=True)
    )
    for plan in plans:
        check_cut_after_masks(model, plan)
    planned = shapes_after(model, plans)
    for rule in masks:
        check_mask_rule(model, rule, planned)
        check_calibration(rule.score, batches)
    before = _structure(model)
    for plan in plans:
        cut(model, plan)
    after = _structure(model)
    if cuts:
        record(model, "prune", rules=[rule.facts() for rule in cuts], before=before, after=after)
    zeros: dict[str, MatrixZeros] = {}
    for rule in masks:
        _mask(model, rule, batches, zeros)
    return PruneReport(before, after, plans, zeros, next(filter(None, choices), None))


def _structure(model: nn.Module) -> dict[str, list[int]]:
    try:
        return structure(model)
    except ArchitectureError:
        # masks with named matrices do without a map
        return {}


def _mask(model: nn.Module, rule: MaskRule, batches: Any, zeros: dict[str, MatrixZeros]) -> None:
    """Carry out one rule for weights, enter its zeros and record it as a step of its own."""
    masks = masks_for(model, rule, batches)
    linears = {target.name: target.linear for target in mask_targets(model, rule.targets)}
    before = {name: _zeros(linear) for name, linear in linears.items()}
    apply_masks(model, masks)
    weights = 0
    for name, linear in linears.items():
        first = zeros[name].before if name in zeros else before[name]
        zeros[name] = MatrixZeros(first, _zeros(linear), oriented(linear).numel())
        weights += zeros[name].weights
    shape = _structure(model)
    record(
        model,
        "prune",
        rules=[rule.facts()],
        before=shape,
        after=shape,
        zeros_before=round(sum(before.values()) / weights, 6),
        zeros_after=round(sum(zeros[name].after for name in linears) / weights, 6),
    )


def _zeros(linear: Any) -> int:
    return int((oriented(linear) == 0).sum())
