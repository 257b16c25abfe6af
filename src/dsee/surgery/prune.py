"""``dsee.prune``: choose by rules, then cut."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from dsee.architectures import structure
from dsee.errors import InputError
from dsee.pruning.budget import Budget, Choice
from dsee.pruning.calibration import Batch
from dsee.pruning.plan import LayerPlan, plan_for
from dsee.pruning.rules import Rule
from dsee.steps import record
from dsee.surgery.cut import cut
from dsee.surgery.timing import choose_within


@dataclass(frozen=True)
class PruneReport:
    """What a call to :func:`prune` did.

    Attributes:
        before: heads and neurons of each layer before.
        after: the same afterwards.
        plans: what each rule removed, one list of layer plans per rule.
        budget: what a budget chose, if one was among the rules.
    """

    before: dict[str, list[int]]
    after: dict[str, list[int]]
    plans: tuple[list[LayerPlan], ...]
    budget: Choice | None = None

    def __str__(self) -> str:
        lines = []
        for unit in ("heads", "neurons"):
            was, now = self.before[unit], self.after[unit]
            layerwise = " ".join(str(n) for n in now)
            lines.append(
                f"{unit}: {sum(was)} -> {sum(now)} ({1 - sum(now) / sum(was):.1%} removed; by layer: {layerwise})"
            )
        return "\n".join(lines if self.budget is None else [*lines, str(self.budget)])


def prune(model: nn.Module, *rules: Rule | Budget, calibration: Iterable[Batch] | None = None) -> PruneReport:
    """Remove what the task does not need, in place.

    All rules are decided on the model as it is given, then carried out, so their order makes no difference to the
    choice. After pruning, tune again with a fresh optimizer to recover.

    Args:
        model: a transformers model of a mapped family, bare or wrapped by PEFT.
        *rules: :class:`dsee.Heads`, :class:`dsee.Neurons`, each unit at most once, or a :class:`dsee.Budget` for both.
        calibration: batches (dicts of tensors with labels) for scores that look at data; a DataLoader will do.

    Returns:
        What was removed.

    Raises:
        InputError: no rule, two rules for one unit, or a rule that cannot be met.
        ArchitectureError: the family has no map.
        OrderError: an update is merged, or the score needs an update that is not there.
    """
    if not rules:
        raise InputError("prune: give at least one rule, for example dsee.Heads(0.25).")
    units = [unit for rule in rules for unit in (("heads", "neurons") if isinstance(rule, Budget) else (rule.unit,))]
    if len(set(units)) != len(units):
        raise InputError(
            "prune: two rules for the same unit (a budget is one for heads and neurons); call prune twice if meant."
        )
    # a generator would be empty for the second rule
    batches = list(calibration) if calibration is not None else None
    before = structure(model)
    chosen: Choice | None = None
    decided: list[list[LayerPlan]] = []
    for rule in rules:
        if isinstance(rule, Budget):
            chosen = choose_within(model, rule, batches)
            decided.append(chosen.plans)
        else:
            decided.append(plan_for(model, rule, batches))
    plans = tuple(decided)
    for plan in plans:
        cut(model, plan)
    after = structure(model)
    record(model, "prune", rules=[rule.facts() for rule in rules], before=before, after=after)
    return PruneReport(before, after, plans, chosen)
