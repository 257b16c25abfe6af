"""What a recipe may say about when masks come."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

#: A share of the steps if it is written with a point, else a step.
Moment = Annotated[float, Field(ge=0.0, le=1.0, strict=True)] | Annotated[int, Field(ge=0, strict=True)]


class ScheduleSpec(BaseModel):
    """See :class:`dsee.Gradual`; its steps are those of recovering."""

    model_config = ConfigDict(extra="forbid")

    law: Literal["cubic", "linear"] = "cubic"
    start: Moment = 0.0
    end: Moment = 0.6
    every: Annotated[int, Field(ge=1)] = 10
    regrow: bool = False
