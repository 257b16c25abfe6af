"""The pruning instructions that a user writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dsee.errors import InputError, check_ratio, nearest
from dsee.pruning.scores import check_score

Scope = Literal["layer", "global"]
Unit = Literal["heads", "neurons"]


@dataclass(frozen=True)
class Rule:
    """Remove whole heads or neurons: the part common to :class:`Heads` and :class:`Neurons`.

    Attributes:
        amount: a ratio in (0, 1), or a count: of each layer with ``scope="layer"``, of all layers with "global".
        score: what ranks them; ``dsee.pruning.scores()`` lists the names.
        scope: "layer" removes as many from each layer, "global" ranks over all layers.
        seed: seeds the score "random".
    """

    amount: float | int
    score: str = "weight"
    scope: Scope = "layer"
    seed: int = 0

    unit: ClassVar[Unit]

    def __post_init__(self) -> None:
        name = type(self).__name__
        if isinstance(self.amount, bool) or not isinstance(self.amount, (int, float)):
            raise InputError(f"{name}: {self.amount!r} is neither a ratio such as 0.25 nor a count such as 3.")
        if isinstance(self.amount, int):
            if self.amount < 1:
                raise InputError(
                    f"{name}({self.amount}): a count is at least 1; a ratio lies strictly between 0 and 1."
                )
        else:
            check_ratio(name, self.amount)
        if self.scope not in ("layer", "global"):
            raise InputError(f"{name}: scope={self.scope!r} is unknown.{nearest(self.scope, ['layer', 'global'])}")
        check_score(self.score)

    def facts(self) -> dict[str, Any]:
        """Return the rule as plain data for the history."""
        return {
            "rule": self.unit,
            "amount": self.amount,
            "score": self.score,
            "scope": self.scope,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class Heads(Rule):
    """Remove attention heads: their query, key and value rows and their columns of the output projection.

    The default score is the paper's: ``|s (U V + S2)|`` summed over a head's query and value rows.
    """

    score: str = "update"
    unit: ClassVar[Unit] = "heads"


@dataclass(frozen=True)
class Neurons(Rule):
    """Remove neurons of the feed-forward part: rows of its first linear and columns of its second.

    Attributes:
        multiple_of: what remains in a layer is a multiple of this, which runtimes like. None means 8 for a ratio on
            layers of at least 128 neurons, else 1, so that a count is met exactly.
    """

    multiple_of: int | None = None
    unit: ClassVar[Unit] = "neurons"

    def __post_init__(self) -> None:
        super().__post_init__()
        multiple = self.multiple_of
        if multiple is not None and (not isinstance(multiple, int) or isinstance(multiple, bool) or multiple < 1):
            raise InputError(f"Neurons: multiple_of={multiple!r} has to be a whole number, at least 1.")

    def facts(self) -> dict[str, Any]:
        """Return the rule as plain data for the history."""
        return super().facts() | {"multiple_of": self.multiple_of}
