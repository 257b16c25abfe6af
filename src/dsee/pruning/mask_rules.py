"""The instructions that mask weights one by one, in blocks, or n of every m."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from dsee.errors import InputError, nearest
from dsee.pruning.weight_scores import check_weight_score

MaskScope = Literal["global", "layer"]
Groups = Literal["paper", "one"]

#: Share of a matrix that stays, whatever the others look like, unless the ratio leaves too little for that.
FLOOR = 0.05


@dataclass(frozen=True, kw_only=True)
class MaskRule:
    """What :class:`Weights`, :class:`Blocks` and :class:`NofM` have in common.

    Attributes:
        score: what ranks the weights; ``dsee.pruning.weight_scores()`` lists the names.
        targets: names of the matrices, matched as suffixes; None for all linears of the transformer layers.
        seed: seeds the score "random".
    """

    score: str = "update"
    targets: tuple[str, ...] | None = None
    seed: int = 0

    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_weight_score(self.score)
        if isinstance(self.targets, str) or (self.targets is not None and not self.targets):
            raise InputError(f"targets={self.targets!r} has to be a list of names, such as ['query', 'value'].")
        if self.targets is not None:
            object.__setattr__(self, "targets", tuple(self.targets))

    @property
    def label(self) -> str:
        """The rule in a few words, for messages."""
        return self.name

    @property
    def grain(self) -> tuple[int, int]:
        """Output rows x input columns that a later step must not tear apart."""
        return (1, 1)

    def facts(self) -> dict[str, Any]:
        """Return the rule as plain data for the history; its names are the constructor's."""
        targets = None if self.targets is None else list(self.targets)
        return {"rule": self.name, "score": self.score, "targets": targets, "seed": self.seed}


@dataclass(frozen=True)
class RatioRule(MaskRule):
    """A rule that says what share of the weights goes: the part common to :class:`Weights` and :class:`Blocks`.

    Attributes:
        ratio: share of zeros afterwards, in (0, 1), of each group; zeros that are there already count.
        scope: "global" ranks over all matrices of a group, "layer" takes the same share of each matrix.
        groups: "paper" ranks query and value apart from the rest, and matrices with an update apart from those without,
            whose scores are of another size; "one" ranks all together. None is "paper" for ``score="update"``, else
            "one".
        floor: share of each matrix that stays at least. None is 5 %, or half of what the ratio leaves, if that is less.
    """

    ratio: float
    scope: MaskScope = "global"
    groups: Groups | None = None
    floor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        label = type(self).__name__
        if isinstance(self.ratio, bool) or not isinstance(self.ratio, (int, float)):
            raise InputError(f"{label}: ratio={self.ratio!r} is not a number such as 0.5.")
        if not 0.0 < self.ratio < 1.0:
            raise InputError(f"{label}: ratio={self.ratio} is out of range: it lies strictly between 0 and 1.")
        if self.scope not in ("global", "layer"):
            raise InputError(f"{label}: scope={self.scope!r} is unknown.{nearest(self.scope, ['layer', 'global'])}")
        if self.groups not in (None, "paper", "one"):
            raise InputError(f"{label}: groups={self.groups!r} is unknown. Use 'paper' or 'one'.")
        if self.floor is not None and not 0.0 <= self.floor < 1.0:
            raise InputError(f"{label}: floor={self.floor} is out of range: it is a share, from 0 to below 1.")
        if self.floor is not None and self.floor > 1.0 - self.ratio:
            raise InputError(
                f"{label}: ratio={self.ratio} leaves {1.0 - self.ratio:.1%} of the weights, less than "
                f"floor={self.floor} asks for. Lower one of them."
            )

    @property
    def by_group(self) -> bool:
        """Whether the paper's groups are ranked apart."""
        return self.groups == "paper" or (self.groups is None and self.score == "update")

    @property
    def kept_at_least(self) -> float:
        """Share of each matrix that stays."""
        return min(FLOOR, (1.0 - self.ratio) / 2.0) if self.floor is None else self.floor

    def facts(self) -> dict[str, Any]:
        """Return the rule as plain data for the history; its names are the constructor's."""
        facts = {"ratio": self.ratio, "scope": self.scope, "groups": self.groups, "floor": self.floor}
        return super().facts() | facts


@dataclass(frozen=True)
class Weights(RatioRule):
    """Mask single weights.

    The default is the paper's: ``|s (U V + S2)|`` where there is an update, ``|W|`` elsewhere, ranked over all matrices
    of a group. On ordinary CPUs zeros of this kind save bytes and hardly time; :class:`Blocks` saves both.
    """

    name: ClassVar[str] = "weights"

    @property
    def label(self) -> str:
        """The rule in a few words, for messages."""
        return f"Weights {self.ratio:g}"


@dataclass(frozen=True)
class Blocks(RatioRule):
    """Mask small rectangles of weights, scored by the sum over the rectangle.

    Four output rows that share their input column are what the CPU kernels are made for. Where a matrix is no multiple
    of the shape, the blocks at its edge are smaller; they are ranked by the sum a full block would have, count by their
    weights, and the ratio is then met to within one block of each group (matrix, with ``scope="layer"``).

    Attributes:
        shape: output rows x input columns of one block, also for Conv1D.
    """

    shape: tuple[int, int] = (4, 1)

    name: ClassVar[str] = "blocks"

    def __post_init__(self) -> None:
        super().__post_init__()
        sides = self.shape
        if not isinstance(sides, (tuple, list)) or len(sides) != 2 or not all(type(s) is int and s > 0 for s in sides):
            raise InputError(f"Blocks: shape={sides!r} has to be two whole numbers, output rows x input columns.")
        object.__setattr__(self, "shape", tuple(sides))

    @property
    def label(self) -> str:
        """The rule in a few words, for messages."""
        return f"Blocks {self.shape[0]}x{self.shape[1]} {self.ratio:g}"

    @property
    def grain(self) -> tuple[int, int]:
        """Output rows x input columns that a later step must not tear apart."""
        return self.shape

    def facts(self) -> dict[str, Any]:
        """Return the rule as plain data for the history; its names are the constructor's."""
        return super().facts() | {"shape": list(self.shape)}


@dataclass(frozen=True)
class NofM(MaskRule):
    """Keep at most n of every m weights that follow one another along the input: ``NofM(2, 4)`` is 2:4.

    Every matrix has to have a multiple of m inputs.

    Attributes:
        n: how many stay, at least 1.
        m: of how many.
    """

    n: int
    m: int

    name: ClassVar[str] = "n_of_m"

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.n) is not int or type(self.m) is not int or not 0 < self.n < self.m:
            raise InputError(
                f"NofM({self.n!r}, {self.m!r}): n of m stay, two whole numbers with 0 < n < m, such as NofM(2, 4)."
            )

    @property
    def label(self) -> str:
        """The rule in a few words, for messages."""
        return f"NofM {self.n}:{self.m}"

    @property
    def grain(self) -> tuple[int, int]:
        """Output rows x input columns that a later step must not tear apart."""
        return (1, self.m)

    def facts(self) -> dict[str, Any]:
        """Return the rule as plain data for the history; its names are the constructor's."""
        return super().facts() | {"n": self.n, "m": self.m}


#: The rules by the name that the history has for them.
MASK_RULES: dict[str, type[MaskRule]] = {rule.name: rule for rule in (Weights, Blocks, NofM)}
