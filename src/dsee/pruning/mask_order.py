"""What may follow a mask: a later step must not tear its blocks or its groups of m apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dsee.architectures import LayerView, layers
from dsee.errors import InputError, OrderError
from dsee.pruning.mask_rules import MASK_RULES, Blocks, MaskRule, NofM
from dsee.pruning.masks import get_mask, masked_linears
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
    torn = [(number, rule) for number, rule in patterns(model) if rule.grain != (1, 1)]
    if not torn:
        return
    for view, layer_plan in zip(layers(model), plan, strict=True):
        for number, rule in torn:
            for unit, reason in _torn(view, layer_plan, rule):
                raise OrderError(
                    f"prune: cutting {unit} from layer {view.index} would tear apart what step {number}, prune "
                    f"({rule.label}), has masked: {reason}. Cut first, then mask: give both rules to one dsee.prune "
                    "call, or start from the model before that step."
                )


def _torn(view: LayerView, plan: LayerPlan, rule: MaskRule) -> list[tuple[str, str]]:
    down, across = rule.grain
    kind = f"groups of {across}" if isinstance(rule, NofM) else f"blocks of {down}x{across}"
    found = []
    if plan.heads:
        for parts, step in ((("query", "key", "value"), down), (("output",), across)):
            if view.head_size % step and _any_mask(view, parts):
                found.append(("heads", f"a head is {view.head_size} features wide, no multiple of {kind}"))
    if plan.neurons:
        gone = torch.zeros(view.neurons, dtype=torch.bool)
        gone[list(plan.neurons)] = True
        for parts, step in ((("ffn_in",), down), (("ffn_out",), across)):
            if not _whole(gone, step) and _any_mask(view, parts):
                found.append(("neurons", f"the neurons do not go in whole {kind}"))
    return found


def _whole(gone: torch.Tensor, step: int) -> bool:
    """Whether a cut takes runs of ``step`` or leaves them; the last run may be shorter if the cut ends before it."""
    full = gone.numel() - gone.numel() % step
    runs = gone[:full].view(-1, step)
    rest = gone[full:]
    return bool((runs.all(1) | ~runs.any(1)).all()) and (not rest.any() or bool(rest.all()))


def _any_mask(view: LayerView, parts: tuple[str, ...]) -> bool:
    return any(get_mask(view.part(part)) is not None for part in parts)
