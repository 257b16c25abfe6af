"""What may follow a mask: a later step must not tear its blocks or its groups of m apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from dsee.architectures import LayerView, layers
from dsee.errors import InputError, OrderError
from dsee.masks import get_mask, masked_linears, oriented
from dsee.pruning.mask_rules import MASK_RULES, Blocks, MaskRule
from dsee.pruning.plan import LayerPlan
from dsee.pruning.targets import mask_targets
from dsee.pruning.weight_scores import weight_scores
from dsee.steps import history


def patterns(model: nn.Module) -> list[tuple[int, MaskRule]]:
    """Return the mask rules in the model's history with the number of their step, if it still has masks.

    Args:
        model: a transformers model, with or without updates.
    """
    if not masked_linears(model):
        return []
    steps = enumerate(history(model), 1)
    rules = [(number, facts) for number, step in steps for facts in step.get("rules", [])]
    return [(number, rule_of(facts)) for number, facts in rules if facts.get("rule") in MASK_RULES]


def rule_of(facts: dict[str, Any]) -> MaskRule:
    """Make a rule from its facts; a score that is not registered here any more becomes "weight".

    Args:
        facts: as from a rule's ``facts()``.
    """
    rest = {key: value for key, value in facts.items() if key != "rule"}
    if rest["score"] not in weight_scores():
        rest["score"] = "weight"
    return MASK_RULES[facts["rule"]](**rest)


def check_after_masks(model: nn.Module, rule: MaskRule) -> None:
    """Refuse a second pattern that the first one would not survive, or that would not hold on top of it.

    Allowed are the same pattern again, N:M after single weights or other N:M, and single weights after N:M, whose
    groups then hold n or fewer.

    Args:
        model: a transformers model, with or without updates.
        rule: the rule about to be carried out.

    Raises:
        OrderError: it is not allowed; the message names the earlier step.
    """
    for number, earlier in patterns(model):
        same = type(earlier) is type(rule) and earlier.grain == rule.grain
        if same or not any(isinstance(one, Blocks) for one in (earlier, rule)):
            continue
        if _meet(model, earlier, rule):
            raise OrderError(
                f"prune ({rule.label}): step {number}, prune ({earlier.label}), has masked the same matrices in "
                "another pattern, and one of the two would not hold. Use one pattern, start from the model before that "
                "step, or keep the matrices apart with targets=."
            )


def _meet(model: nn.Module, earlier: MaskRule, rule: MaskRule) -> bool:
    """Whether two rules name a masked matrix in common."""
    try:
        one, other = (mask_targets(model, r.targets) for r in (earlier, rule))
    except InputError:
        # names of a model that has been changed since: take the rules to meet
        return True
    names = {target.name for target in one if target.mask is not None}
    return any(target.name in names for target in other)


def check_cut_after_masks(model: nn.Module, plan: Sequence[LayerPlan]) -> None:
    """Refuse a cut that tears blocks or groups of an earlier mask apart. Masks of single weights are simply cut along.

    Args:
        model: a transformers model with a map.
        plan: what is about to be cut, one entry per layer.

    Raises:
        OrderError: it would; the message names the earlier step.
    """
    fragile = [(number, rule) for number, rule in patterns(model) if rule.grain != (1, 1)]
    if not fragile:
        return
    for view, layer_plan in zip(layers(model), plan, strict=True):
        for unit, linear, dim, gone in _losses(view, layer_plan):
            for number, rule in fragile:
                if get_mask(linear) is None or _whole(gone, rule.grain[dim]):
                    continue
                raise OrderError(
                    f"prune: cutting {unit} of layer {view.index} would tear apart what step {number}, prune "
                    f"({rule.label}), has masked: what goes is not made of whole runs of {rule.grain[dim]} "
                    f"{'rows' if dim == 0 else 'columns'}. Cut first, then mask: give both rules to one dsee.prune "
                    "call, or start from the model before that step."
                )


def shapes_after(model: nn.Module, plans: Iterable[Sequence[LayerPlan]]) -> dict[int, tuple[int, int]]:
    """Return the shape (out, in) that plans leave of each linear they cut, by the id of the module.

    Args:
        model: a transformers model with a map.
        plans: what is about to be cut: for each rule one entry per layer.
    """
    shapes: dict[int, tuple[int, int]] = {}
    for plan in plans:
        for view, layer_plan in zip(layers(model), plan, strict=True):
            for _, linear, dim, gone in _losses(view, layer_plan):
                shape = list(shapes.get(id(linear), tuple(oriented(linear).shape)))
                shape[dim] -= int(gone.sum())
                shapes[id(linear)] = (shape[0], shape[1])
    return shapes


def _losses(view: LayerView, plan: LayerPlan) -> Iterator[tuple[str, Any, int, torch.Tensor]]:
    """Each linear that loses rows (dim 0) or columns (dim 1), with a mark for each of them that goes."""
    for unit, removed, size in (("heads", plan.heads, view.heads), ("neurons", plan.neurons, view.neurons)):
        if not removed:
            continue
        units = torch.zeros(size, dtype=torch.bool)
        units[list(removed)] = True
        marks: dict[int, tuple[Any, torch.Tensor]] = {}
        for part in view.names(unit):
            linear, rows = view.part(part), view.rows(part)
            _, gone = marks.setdefault(id(linear), (linear, torch.zeros(oriented(linear).shape[0], dtype=torch.bool)))
            gone[rows] = units.repeat_interleave((rows.stop - rows.start) // size)
        yield from ((unit, linear, 0, gone) for linear, gone in marks.values())
        for linear in view.further().values() if unit == "heads" else ():
            yield unit, linear, 0, units.repeat_interleave(view.width("query"))
        last = view.part("output" if unit == "heads" else "ffn_out")
        yield unit, last, 1, units.repeat_interleave(oriented(last).shape[1] // size)


def _whole(gone: torch.Tensor, step: int) -> bool:
    """Whether runs of ``step`` go or stay as a whole; the last one may be shorter, and moves without harm."""
    return all(bool(run.any()) == bool(run.all()) for run in gone.split(step))
