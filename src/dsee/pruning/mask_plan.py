"""From scores of weights to masks: which weights go, exactly how many, and what may follow what.

A gradual schedule calls :func:`masks_for` and :func:`apply_masks` again and again with a growing ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from dsee.errors import InputError, OrderError
from dsee.masks import set_mask
from dsee.modes import torch_threads
from dsee.pruning.blocks import block_grid, block_sizes, block_sums, spread
from dsee.pruning.calibration import Batch
from dsee.pruning.mask_order import check_after_masks
from dsee.pruning.mask_rules import MaskRule, NofM, RatioRule
from dsee.pruning.selection import GONE, PROTECTED, Units, keys_of, lowest
from dsee.pruning.targets import Target, mask_targets
from dsee.pruning.weight_scores import WeightScoreInput, check_calibration, check_weight_score
from dsee.update.layer import any_merged


def masks_for(model: nn.Module, rule: MaskRule, calibration: Iterable[Batch] | None = None) -> dict[str, torch.Tensor]:
    """Decide which weights a rule masks, without masking them.

    Weights that are masked already stay so, and count. The choice is made in fp32 on the CPU, and on one thread, since
    others round sums in another order and a score at the threshold would change sides.

    Args:
        model: a transformers model, with or without updates.
        rule: the instruction.
        calibration: batches, for scores that need them.

    Returns:
        For the path of each matrix in the transformers model its whole new mask: bool, (out, in), on the CPU, True
        where a weight is kept.

    Raises:
        InputError: the rule cannot be met, or does not fit a matrix.
        OrderError: an update is merged, the score needs an update that is not there, or a mask of another pattern is.
        ArchitectureError: the family has no map and the rule names no matrices.
    """
    targets = check_mask_rule(model, rule)
    check_calibration(rule.score, calibration)
    with torch_threads(1):
        scores = check_weight_score(rule.score)(WeightScoreInput(model, targets, rule.seed, calibration))
        # a matrix's score is let go of as soon as its keys are made
        if isinstance(rule, RatioRule):
            return _by_ratio(rule, targets, scores)
        assert isinstance(rule, NofM)  # noqa: S101 - tells mypy what check_mask_rule has made sure of
        return {target.name: _n_of_m(rule, target, _checked(rule, target, scores)) for target in targets}


def apply_masks(model: nn.Module, masks: dict[str, torch.Tensor]) -> None:
    """Give matrices their masks, in place of any they have, and write the zeros into W.

    Args:
        model: a transformers model, with or without updates.
        masks: as from :func:`masks_for`.

    Raises:
        InputError: a matrix is not there, or a mask does not fit. Nothing has been changed then.
        OrderError: an update is merged.
    """
    if any_merged(model):
        raise OrderError("prune: an update is merged into the weights. Call model.unmerge_adapter() first.")
    targets = {target.name: target for target in mask_targets(model, list(masks))}
    for name, mask in masks.items():
        if name not in targets:
            raise InputError(f"apply_masks: the model has no matrix {name!r}.")
        if tuple(mask.shape) != targets[name].shape:
            raise InputError(f"apply_masks: {name}: a mask of {tuple(mask.shape)} does not fit {targets[name].shape}.")
    for name, mask in masks.items():
        set_mask(targets[name].linear, mask)


def check_mask_rule(
    model: nn.Module, rule: MaskRule, planned: Mapping[int, tuple[int, int]] | None = None
) -> list[Target]:
    """Find what would refuse a rule before anything is scored.

    Args:
        model: a transformers model, with or without updates; on the meta device too.
        rule: the instruction.
        planned: shapes that matrices will have after a cut, by the id of the module.

    Returns:
        The matrices it is about.

    Raises:
        InputError: the rule does not fit a matrix.
        OrderError: an update is merged.
        ArchitectureError: the family has no map and the rule names no matrices.
    """
    if not isinstance(rule, (RatioRule, NofM)):
        raise InputError(f"{rule!r} is no rule for masks: use dsee.Weights, dsee.Blocks or dsee.NofM.")
    if any_merged(model):
        raise OrderError("prune: an update is merged into the weights. Call model.unmerge_adapter() first.")
    targets = mask_targets(model, rule.targets)
    if not targets:
        raise InputError(f"{rule.label}: the model has no matrix to mask.")
    check_after_masks(model, rule)
    if isinstance(rule, NofM):
        for target in targets:
            _, inputs = (planned or {}).get(id(target.linear), target.shape)
            if inputs % rule.m:
                raise InputError(
                    f"{rule.label}: {target.name} has {inputs} inputs, which is no multiple of {rule.m}. Name "
                    f"the matrices that fit with targets=, or cut neurons with multiple_of={rule.m} first."
                )
    return targets


def _checked(rule: MaskRule, target: Target, scores: dict[str, torch.Tensor]) -> torch.Tensor:
    """Take a matrix's score out of the dict, on the CPU."""
    score = scores.pop(target.name, None)
    if score is None:
        raise InputError(f"score={rule.score!r} gave no values for {target.name}.")
    if tuple(score.shape) != target.shape:
        raise InputError(f"score={rule.score!r} gave shape {tuple(score.shape)} for {target.name}, {target.shape}.")
    score = score.detach().to("cpu", torch.float32)
    if not torch.isfinite(score).all():
        raise InputError(f"score={rule.score!r} is NaN or infinite in {target.name}: the weights are broken.")
    return score


@dataclass
class _Part:
    """Rows of one matrix that are ranked together, and the group they are in."""

    target: Target
    start: int
    stop: int
    group: tuple[bool, bool]
    units: Units

    @property
    def shape(self) -> tuple[int, int]:
        return self.stop - self.start, self.target.shape[1]


def _by_ratio(rule: RatioRule, targets: list[Target], scores: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    parts: list[_Part] = []
    for target in targets:
        score, mask = _checked(rule, target, scores), target.mask
        kept = None if mask is None else mask.cpu()
        for start, stop, group in _cut_up(rule, target):
            units = _units(rule, target, score[start:stop], None if kept is None else kept[start:stop])
            parts.append(_Part(target, start, stop, group, units))
    pools: dict[object, list[_Part]] = {}
    for number, part in enumerate(parts):
        pools.setdefault(part.group if rule.scope == "global" else number, []).append(part)
    masks = {target.name: torch.ones(target.shape, dtype=torch.bool) for target in targets}
    for pool in pools.values():
        for part, goes in zip(pool, _choose(rule, pool), strict=True):
            grid = goes.view(block_grid(part.shape, rule.grain))
            masks[part.target.name][part.start : part.stop] = ~spread(grid, part.shape, rule.grain)
    return masks


def _cut_up(rule: RatioRule, target: Target) -> Iterator[tuple[int, int, tuple[bool, bool]]]:
    """Row ranges of a matrix with their group: whether the paper adapts them, and whether they carry an update."""
    rows, adapted, updated = target.shape[0], target.adapted_rows, target.updated_rows
    edges = sorted({0, rows, *(edge for span in (*adapted, *updated) for edge in span)})
    if not rule.by_group:
        yield 0, rows, (False, False)
    elif any(edge % rule.grain[0] for edge in edges[1:-1]):
        # blocks would lie across the edge: the matrix stays in one piece
        yield 0, rows, (bool(adapted), target.has_update)
    else:
        for start, stop in pairwise(edges):
            inside = [any(low <= start and stop <= high for low, high in spans) for spans in (adapted, updated)]
            yield start, stop, (inside[0], inside[1])


def _units(rule: RatioRule, target: Target, score: torch.Tensor, kept: torch.Tensor | None) -> Units:
    """Blocks of some rows, those that are gone already and those that have to stay marked as such."""
    rows, columns = score.shape
    block, full = rule.grain, rule.grain[0] * rule.grain[1]
    sizes = block_sizes((rows, columns), block)
    sums = block_sums(score, block)
    if sizes is not None:
        # what a full block would have; of full blocks the sum as it is
        sums = torch.where(sizes == full, sums, sums * (full / sizes))
    keys = keys_of(sums)
    flat_sizes = None if sizes is None else sizes.reshape(-1)
    if kept is not None:
        left = block_sums(kept.to(torch.int32), block).reshape(-1)
        if bool(((left > 0) & (left < (full if flat_sizes is None else flat_sizes))).any()):
            raise OrderError(
                f"prune ({rule.label}): {target.name} has a mask that leaves blocks of {block[0]}x{block[1]} half "
                "full. Put one pattern on a matrix: start from the model before that mask."
            )
        keys[left == 0] = GONE
    units = Units(keys, flat_sizes, full)
    stays = math.ceil(rule.kept_at_least * units.weights)
    # a floor that leaves no more than the ratio asks for must not fail for a fraction of a weight
    stays = min(stays, units.weights - math.ceil(rule.ratio * units.weights))
    # the best ones up to the floor: all but the lowest
    keys[~_up_to(units, units.weights - stays) & (keys != GONE)] = PROTECTED
    return units


def _up_to(units: Units, count: int) -> torch.Tensor:
    """The lowest units that hold at most ``count`` weights."""
    goes = lowest([units], count)[0]
    while units.weights_of(goes) > count:
        # whole blocks round up as well as down; the last one taken is the highest of them
        highest = (units.keys == units.keys[goes].max()) & goes
        goes[highest.nonzero().reshape(-1)[-1]] = False
    return goes


def _choose(rule: RatioRule, pool: list[_Part]) -> list[torch.Tensor]:
    """Which blocks of each part go so that the pool has its ratio of zeros."""
    units = [part.units for part in pool]
    total = sum(u.weights for u in units)
    # in whole blocks where all are full, so that it is rounded once
    size = units[0].size if all(u.sizes is None for u in units) else 1
    count = size * math.floor(rule.ratio * (total // size) + 0.5)
    gone = [u.keys == GONE for u in units]
    before = sum(u.weights_of(g) for u, g in zip(units, gone, strict=True))
    open_to = total - sum(u.weights_of(u.keys == PROTECTED) for u in units)
    where = pool[0].target.name + (f" and {len(pool) - 1} more" if len(pool) > 1 else "")
    # whole blocks meet the ratio to within one of them
    slack = rule.grain[0] * rule.grain[1] - 1
    if before > count + slack:
        raise InputError(
            f"prune ({rule.label}): {where}: {before / total:.1%} of the weights are masked already, and a mask only "
            "grows. Use a larger ratio, or scope='global'."
        )
    if open_to + slack < count:
        raise InputError(
            f"prune ({rule.label}): {where}: at least {rule.kept_at_least:.1%} of each matrix stay"
            f"{', in whole blocks' if slack else ''}, so at most {open_to / total:.1%} can go. Use a smaller ratio or "
            "floor."
        )
    return [chosen | g for chosen, g in zip(lowest(units, count), gone, strict=True)]


def _n_of_m(rule: NofM, target: Target, score: torch.Tensor) -> torch.Tensor:
    """Keep the n best of each m inputs; the lower index goes first among equals."""
    keys, mask = keys_of(score), target.mask
    if mask is not None:
        keys[~mask.cpu().reshape(-1)] = GONE
    groups = keys.view(-1, rule.m)
    order = torch.argsort(groups, dim=1, stable=True)[:, : rule.m - rule.n]
    kept = groups != GONE
    kept.scatter_(1, order, False)
    return kept.view(target.shape)
