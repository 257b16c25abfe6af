"""The pruning instructions that a user writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from dsee.errors import InputError, check_ratio, nearest
from dsee.pruning.scores import check_score

Scope = Literal["layer", "global"]
Unit = Literal["heads", "neurons"]
#: Which ones of which layer, by the layer's position or as one list per layer.
Explicit = Mapping[int, Sequence[int]] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Rule:
    """Remove whole heads or neurons: the part common to :class:`Heads` and :class:`Neurons`.

    Attributes:
        amount: a ratio in (0, 1), or a count: of each layer with ``scope="layer"``, of all layers with "global".
        score: what ranks them; ``dsee.pruning.scores()`` lists the names.
        scope: "layer" removes as many from each layer, "global" ranks over all layers.
        seed: seeds the score "random".
        explicit: instead of all these, which ones go: ``{layer: indices}``, or one list of indices per layer.
    """

    amount: float | int | None = None
    score: str = "weight"
    scope: Scope = "layer"
    seed: int = 0
    # no part in the hash: a dict has none, and equal rules still have equal hashes
    explicit: Explicit | None = field(default=None, hash=False, kw_only=True)

    unit: ClassVar[Unit]

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.explicit is not None:
            self._check_explicit(name)
            return
        if isinstance(self.amount, bool) or not isinstance(self.amount, (int, float)):
            raise InputError(
                f"{name}: {self.amount!r} is neither a ratio such as 0.25 nor a count such as 3. To name what goes, "
                f"write {name}(explicit={{0: [1, 3]}})."
            )
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

    def _check_explicit(self, name: str) -> None:
        ranking = [f.name for f in fields(self) if f.name != "explicit" and getattr(self, f.name) != f.default]
        if ranking:
            raise InputError(f"{name}: explicit= says what goes; leave out {', '.join(ranking)}.")
        given: Any = self.explicit
        if not isinstance(given, Mapping):
            given = dict(enumerate(given)) if isinstance(given, Sequence) and not isinstance(given, str) else None
        try:
            # JSON has made strings of the layers' numbers
            chosen = {int(k) if isinstance(k, str) else k: tuple(sorted(set(v))) for k, v in (given or {}).items()}
        except (TypeError, ValueError):
            chosen = {}
        if not any(chosen.values()) or not all(_counting(k, *v) for k, v in chosen.items()):
            raise InputError(
                f"{name}: explicit={self.explicit!r} names nothing that could go. Give the {self.unit} of each layer, "
                "both counted from 0: {0: [1, 3], 2: [0]}, or one list for each layer."
            )
        object.__setattr__(self, "explicit", {layer: chosen[layer] for layer in sorted(chosen) if chosen[layer]})

    def facts(self) -> dict[str, Any]:
        """Return the rule as plain data for the history."""
        if isinstance(self.explicit, Mapping):
            return {"rule": self.unit, "explicit": {str(k): list(v) for k, v in self.explicit.items()}}
        return {
            "rule": self.unit,
            "amount": self.amount,
            "score": self.score,
            "scope": self.scope,
            "seed": self.seed,
        }


def _counting(*numbers: Any) -> bool:
    """Whether these are whole numbers from 0 on."""
    return all(type(number) is int and number >= 0 for number in numbers)


@dataclass(frozen=True)
class Heads(Rule):
    """Remove attention heads: their query, key and value rows and their columns of the output projection.

    Where several query heads share a key-value head (Llama, Qwen, Mistral), a head is a key-value head with all the
    query heads that read it: ratios, counts and indices are of these.

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
        if self.explicit is not None:
            return
        multiple = self.multiple_of
        if multiple is not None and (not isinstance(multiple, int) or isinstance(multiple, bool) or multiple < 1):
            raise InputError(f"Neurons: multiple_of={multiple!r} has to be a whole number, at least 1.")

    def facts(self) -> dict[str, Any]:
        """Return the rule as plain data for the history."""
        rounding = {} if self.explicit is not None else {"multiple_of": self.multiple_of}
        return super().facts() | rounding
