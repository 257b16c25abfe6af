"""What a recipe may say about masks of weights and when they come."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dsee.pruning import Blocks, Gradual, MaskRule, NofM, Weights
from dsee.pruning.schedule import Calibration

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
#: A share of the steps if it is written with a point, else a step.
Moment = Annotated[float, Field(ge=0.0, le=1.0, strict=True)] | Annotated[int, Field(ge=0, strict=True)]


class MaskSpec(BaseModel):
    """What all rules for masks have in common; see :class:`dsee.Weights`."""

    model_config = ConfigDict(extra="forbid")

    score: str = "fisher"
    targets: list[str] | None = None


class WeightsSpec(MaskSpec):
    """See :class:`dsee.Weights`."""

    ratio: Share
    scope: Literal["global", "layer"] = "global"
    groups: Literal["paper", "one"] | None = None
    floor: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None


class BlocksSpec(WeightsSpec):
    """See :class:`dsee.Blocks`."""

    shape: tuple[Positive, Positive] = (4, 1)


class NofMSpec(MaskSpec):
    """See :class:`dsee.NofM`."""

    n: Positive
    m: Positive


class ScheduleSpec(BaseModel):
    """See :class:`dsee.Gradual`; its steps are those of recovering."""

    model_config = ConfigDict(extra="forbid")

    law: Literal["cubic", "linear"] = "cubic"
    start: Moment = 0.0
    end: Moment = 0.6
    every: Positive = 10
    regrow: bool = False


class MasksSpec(BaseModel):
    """At most one rule for masks, and how it is reached.

    Attributes:
        weights: mask single weights; a number is the ratio.
        blocks: mask by blocks; a number is the ratio.
        n_of_m: keep n of every m.
        schedule: reach the rule gradually while recovering; None does it at once, before. A word is its law.
    """

    model_config = ConfigDict(extra="forbid")

    weights: WeightsSpec | None = None
    blocks: BlocksSpec | None = None
    n_of_m: NofMSpec | None = None
    schedule: ScheduleSpec | None = None

    @field_validator("weights", "blocks", mode="before")
    @classmethod
    def _bare_ratio(cls, value: object) -> object:
        """``blocks: 0.7`` is short for ``blocks: {ratio: 0.7}``."""
        return {"ratio": value} if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    @field_validator("schedule", mode="before")
    @classmethod
    def _bare_law(cls, value: object) -> object:
        """``schedule: cubic`` is short for ``schedule: {law: cubic}``."""
        return {"law": value} if isinstance(value, str) else value

    def check_masks(self) -> None:
        """Refuse combinations that make no sense.

        Raises:
            ValueError: two rules, a schedule without a rule, or a score that is learned without the time to learn it.
        """
        given = [spec for spec in (self.weights, self.blocks, self.n_of_m) if spec is not None]
        if len(given) > 1:
            raise ValueError("give one of weights, blocks and n_of_m")
        if self.schedule and not given:
            raise ValueError(
                "schedule: there is nothing to reach; give weights, blocks or n_of_m (heads and neurons "
                "are cut at once, before recovering)"
            )
        if given and given[0].score == "movement" and not self.schedule:
            raise ValueError("score: movement is learned while recovering; add a schedule, such as schedule: cubic")

    def mask_rule(self, seed: int) -> MaskRule | None:
        """Return the rule, if there is one.

        Args:
            seed: seeds the score "random".

        Raises:
            InputError: a score or ratio that does not exist.
        """
        kinds: list[tuple[type[MaskRule], MaskSpec | None]] = [
            (Weights, self.weights),
            (Blocks, self.blocks),
            (NofM, self.n_of_m),
        ]
        for kind, spec in kinds:
            if spec is not None:
                return kind(**spec.model_dump(), seed=seed)
        return None

    def gradual(self, seed: int, calibration: Calibration = None) -> Gradual | None:
        """Return the schedule with its rule, if there is one.

        Args:
            seed: seeds the score "random".
            calibration: batches for scores that look at data.

        Raises:
            InputError: a score, ratio or span that does not exist.
        """
        rule = self.mask_rule(seed)
        return Gradual(rule, **self.schedule.model_dump(), calibration=calibration) if rule and self.schedule else None
