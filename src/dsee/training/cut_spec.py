"""What a recipe may say about the heads and neurons that go."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Amount = Annotated[float, Field(gt=0.0, lt=1.0)] | Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Scope = Literal["layer", "global"]


class CutSpec(BaseModel):
    """How many, and what ranks them; or which ones: ``explicit: {0: [1, 3]}``, or one list for each layer."""

    model_config = ConfigDict(extra="forbid")

    amount: Amount | None = None
    score: str = "weight"
    scope: Scope = "layer"
    explicit: dict[Index, list[Index]] | list[list[Index]] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> CutSpec:
        ranking = sorted(self.model_fields_set - {"explicit"})
        if self.explicit is not None and ranking:
            raise ValueError(f"explicit says what goes; leave out {', '.join(ranking)}")
        if self.explicit is None and self.amount is None:
            raise ValueError("say how many with amount, or which ones with explicit, such as {0: [1, 3], 2: [0]}")
        return self

    def arguments(self, seed: int) -> dict[str, Any]:
        """Return the rule's arguments.

        Args:
            seed: of the recipe; what is named is drawn by nothing.
        """
        if self.explicit is not None:
            return {"explicit": self.explicit}
        return self.model_dump(exclude={"explicit"}) | {"seed": seed}


class HeadsSpec(CutSpec):
    """See :class:`dsee.Heads`."""

    score: str = "update"


class NeuronsSpec(CutSpec):
    """See :class:`dsee.Neurons`."""

    score: str = "taylor"
    multiple_of: Annotated[int, Field(ge=1)] | None = None
