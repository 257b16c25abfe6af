"""Masks that grow while tuning goes on: the cubic law of Zhu and Gupta (2017), or another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from dsee.architectures import structure
from dsee.errors import ArchitectureError, InputError, nearest
from dsee.masks import BUFFER, bare, masked_linears, oriented, set_mask, unpack
from dsee.pruning.calibration import Batch
from dsee.pruning.mask_plan import apply_masks, check_mask_rule, masks_for
from dsee.pruning.mask_rules import MaskRule, NofM, RatioRule
from dsee.pruning.movement import Movement, recall, remember, synchronise
from dsee.pruning.targets import Target, mask_targets
from dsee.pruning.weight_scores import check_calibration
from dsee.steps import record

Law = Literal["cubic", "linear"]
#: Share of the way done after a share t of the time.
LAWS: dict[str, Callable[[float], float]] = {"cubic": lambda t: 1.0 - (1.0 - t) ** 3, "linear": lambda t: t}

Calibration = Iterable[Batch] | Callable[[], Iterable[Batch]] | None


@dataclass
class Gradual:
    """One mask rule, reached step by step while tuning: ``s_t = s_0 + (s - s_0) law((t - start) / (end - start))``.

    ``s_0`` is the share of zeros when the schedule begins. ``NofM`` loses its n of m one by one by the same law. A
    masked weight stays masked, unless ``regrow`` is set. Call :meth:`attach` before the first step and :meth:`step`
    after every optimizer step, or give it to :class:`dsee.GradualCallback`. Cuts are not gradual: they replace
    parameters, which an optimizer does not survive; cut between stages instead.

    Attributes:
        rule: :class:`dsee.Weights`, ``Blocks`` or ``NofM``: what holds at the end, exactly.
        start: optimizer step after which masking begins; a float in [0, 1] is a share of all steps.
        end: step after which the rule holds, likewise.
        every: steps between two choices; the last one is at ``end`` whatever this is.
        law: "cubic" prunes much early and little late, "linear" evenly.
        regrow: choose among all weights every time, so that a masked one can return. Needs a frozen base and one copy
            of W more.
        calibration: batches for scores that look at data, or a function that returns them; it is gone through at every
            choice.
    """

    rule: MaskRule
    start: float | int = 0
    end: float | int = 1.0
    every: int = 10
    law: Law = "cubic"
    regrow: bool = False
    calibration: Calibration = None

    _span: tuple[int, int] | None = field(default=None, init=False, repr=False)
    _initial: float = field(default=0.0, init=False, repr=False)
    _applied: int = field(default=-1, init=False, repr=False)
    _movement: Movement | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.rule, MaskRule):
            raise InputError(
                f"Gradual: {type(self.rule).__name__} cannot be reached gradually: a cut replaces parameters under the "
                "optimizer. Use dsee.Weights, dsee.Blocks or dsee.NofM, or call dsee.prune between stages of tuning."
            )
        if self.law not in LAWS:
            raise InputError(f"Gradual: law={self.law!r} is unknown.{nearest(str(self.law), LAWS)}")
        if type(self.every) is not int or self.every < 1:
            raise InputError(f"Gradual: every={self.every!r} has to be a whole number of steps, at least 1.")
        for name, value in (("start", self.start), ("end", self.end)):
            whole = type(value) is int and value >= 0
            if not whole and not (isinstance(value, float) and 0.0 <= value <= 1.0):
                raise InputError(
                    f"Gradual: {name}={value!r} is neither a step such as 100 nor a share of all steps such as 0.5."
                )
        if type(self.start) is type(self.end) and self.end <= self.start:
            raise InputError(f"Gradual: end={self.end} does not come after start={self.start}.")

    @property
    def done(self) -> bool:
        """Whether the rule holds."""
        return self._span is not None and self._applied >= self._span[1]

    def facts(self) -> dict[str, Any]:
        """Return the schedule as plain data for the history, its steps resolved."""
        start, end = self._span or (self.start, self.end)
        return {"start": start, "end": end, "every": self.every, "law": self.law, "regrow": self.regrow}

    def span(self, total: int | None = None) -> tuple[int, int]:
        """Return the steps at which the schedule begins and ends.

        Args:
            total: optimizer steps in all, if ``start`` or ``end`` is a share.

        Raises:
            InputError: a share without ``total``, or steps that do not fit.
        """
        start, end = (_step(value, total) for value in (self.start, self.end))
        if end <= start or (total is not None and end > total):
            raise InputError(
                f"Gradual: steps {start} to {end} do not fit into a training of {total} steps. "
                "Train longer, or let start and end be shares such as 0.1 and 0.7."
            )
        return start, end

    def attach(self, model: nn.Module, total: int | None = None) -> None:
        """Get ready: resolve shares of the steps, check the rule, and follow the movement if the score wants that.

        Args:
            model: a transformers model, with or without updates.
            total: optimizer steps in all, if ``start`` or ``end`` is a share.

        Raises:
            InputError: a share without ``total``, steps that do not fit, or a rule that does not fit the model.
            OrderError: an update is merged.
            ArchitectureError: the family has no map and the rule names no matrices.
        """
        span = self.span(total)
        targets = check_mask_rule(model, self.rule)
        check_calibration(self.rule.score, () if callable(self.calibration) else self.calibration)
        if self.regrow:
            remember(targets)
        if self._movement is not None:
            # a training that was broken off
            self._movement.close()
        if self.rule.score == "movement":
            self._movement = Movement(model, targets=self.rule.targets)
        overall, most = _zeros(targets)
        # with scope="layer" every matrix has to meet the ratio itself
        self._initial = most if getattr(self.rule, "scope", "global") == "layer" else overall
        self._span, self._applied = span, -1

    def at(self, step: int) -> MaskRule | None:
        """Return the rule that holds after an optimizer step; None while nothing is masked yet.

        Args:
            step: number of optimizer steps made.

        Raises:
            InputError: the schedule is not attached.
        """
        if self._span is None:
            raise InputError("Gradual: call attach(model) before the first step.")
        start, end = self._span
        if step >= end:
            return self.rule
        if step < start:
            return None
        way = LAWS[self.law]((step - start) // self.every * self.every / (end - start))
        if isinstance(self.rule, NofM):
            # the tolerance is for 1 - (1 - t)^3 that should be a whole number and is a little less
            gone = math.floor((self.rule.m - self.rule.n) * way + 1e-9)
            return replace(self.rule, n=self.rule.m - gone) if gone else None
        assert isinstance(self.rule, RatioRule)  # noqa: S101 - the two kinds there are
        ratio = self._initial + (self.rule.ratio - self._initial) * way
        return replace(self.rule, ratio=ratio) if way > 0.0 and 0.0 < ratio < 1.0 else None

    def step(self, model: nn.Module, step: int) -> bool:
        """Do what is due after an optimizer step: new masks, or the old ones again where the optimizer moved W.

        Args:
            model: the model.
            step: number of optimizer steps made, the one just made included. A choice that was due at a step that was
                left out is made at the next one.

        Returns:
            Whether the masks were chosen anew.

        Raises:
            InputError: the schedule is not attached, or the rule cannot be met.
            OrderError: the score needs something that is not there.
        """
        rule, (start, end) = self.at(step), self._span or (0, 0)
        due = end if step >= end else start + (step - start) // self.every * self.every
        hold_trained(model)
        if rule is None or self._applied >= due:
            return False
        # n of m stays the same for many choices, and then so does the mask
        same = isinstance(rule, NofM) and not self.regrow and self._applied >= 0 and self.at(self._applied) == rule
        if not same:
            self._choose(model, rule)
        self._applied = due
        if self.done:
            self._record(model)
        return not same

    def _choose(self, model: nn.Module, rule: MaskRule) -> None:
        synchronise(model)
        batches = self.calibration() if callable(self.calibration) else self.calibration
        if self.regrow:
            targets = mask_targets(model, rule.targets)
            recall(targets)
            for target in targets:
                set_mask(target.linear, None)
        apply_masks(model, masks_for(model, rule, batches))

    def finish(self, model: nn.Module) -> None:
        """Let go of what the schedule keeps beside the model: the movement, and W for weights that might have returned.

        Args:
            model: the model.
        """
        hold_trained(model)
        if self._movement is not None:
            self._movement.close()
            self._movement = None
        recall(mask_targets(model, self.rule.targets), forget=True)

    def state(self, model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return what a resumed run needs: masks (one bit per weight) and movement, and plain data.

        Args:
            model: the model.
        """
        tensors: dict[str, torch.Tensor] = {}
        for target in mask_targets(model, self.rule.targets):
            bits = getattr(bare(target.linear), BUFFER, None)
            if bits is not None:
                tensors[f"mask.{target.name}"] = bits
        if self._movement is not None:
            tensors |= {f"movement.{name}": value for name, value in self._movement.scores().items()}
        return tensors, {"applied": self._applied, "initial": self._initial} | self._identity()

    def restore(self, model: nn.Module, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        """Go on where :meth:`state` was taken; the schedule has to be attached.

        Args:
            model: the model, its W as before the schedule or as when the state was taken.
            tensors: from :meth:`state`.
            facts: from :meth:`state`.

        Raises:
            InputError: the state is that of another schedule, or does not fit the model.
        """
        mine = self._identity()
        differing = sorted(key for key in mine if facts.get(key) != mine[key])
        if differing:
            key = differing[0]
            raise InputError(f"Gradual: the stored state has {key}={facts.get(key)}, this schedule {key}={mine[key]}.")
        self._applied, self._initial = int(facts["applied"]), float(facts["initial"])
        if self._movement is not None:
            prefix = "movement."
            self._movement.load({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        masks = {}
        for target in mask_targets(model, self.rule.targets):
            bits = tensors.get(f"mask.{target.name}")
            if bits is not None:
                masks[target.name] = unpack(bits, target.shape)
        if masks:
            apply_masks(model, masks)
        if self.done:
            self._record(model)

    def _record(self, model: nn.Module) -> None:
        """Enter the finished schedule into the history, as the step that one call of :func:`dsee.prune` would make."""
        try:
            shape = structure(model)
        except ArchitectureError:
            # masks with named matrices do without a map
            shape = {}
        record(
            model,
            "prune",
            rules=[self.rule.facts()],
            before=shape,
            after=shape,
            zeros_before=round(self._initial, 6),
            zeros_after=round(_zeros(mask_targets(model, self.rule.targets))[0], 6),
            schedule=self.facts(),
        )

    def _identity(self) -> dict[str, Any]:
        return {"rule": self.rule.facts()} | self.facts()


def _step(value: float | int, total: int | None) -> int:
    if isinstance(value, int):
        return value
    if total is None:
        raise InputError(f"Gradual: {value} is a share of all steps; pass total=, or give a whole number.")
    return math.floor(value * total + 0.5)


def _zeros(targets: list[Target]) -> tuple[float, float]:
    """Share of masked weights over all matrices, and in the matrix that has most of them."""
    sizes = [target.shape[0] * target.shape[1] for target in targets]
    masks = [target.mask for target in targets]
    gone = [0 if mask is None else size - int(mask.sum()) for mask, size in zip(masks, sizes, strict=True)]
    return sum(gone) / sum(sizes), max(g / size for g, size in zip(gone, sizes, strict=True))


@torch.no_grad()
def hold_trained(model: nn.Module) -> None:
    """Write the zeros again where an optimizer moves W itself; a frozen W keeps them by itself.

    Args:
        model: a model with masks.
    """
    for linear in masked_linears(model).values():
        if linear.weight.requires_grad:
            mask = unpack(getattr(linear, BUFFER), (oriented(linear).shape[0], oriented(linear).shape[1]))
            oriented(linear).masked_fill_(~mask, 0.0)
