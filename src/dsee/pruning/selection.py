"""The lowest of very many scores: exact in number, and the same whatever the number of threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

#: Keys beyond every finite score: gone already, and not allowed to go.
GONE, PROTECTED = -(2**31), 2**31 - 1
_BINS = 2**16
#: Keys looked at at a time, which bounds the memory of the temporaries.
_CHUNK = 2**22


def keys_of(score: torch.Tensor) -> torch.Tensor:
    """Turn scores into whole numbers of the same order, in which :data:`GONE` and :data:`PROTECTED` find room.

    Args:
        score: finite, any shape; compared in fp32.

    Returns:
        int32, flat, on the CPU.
    """
    # adding zero makes one of the two zeros; the pattern of a positive float orders as its value does
    bits = (score.detach().reshape(-1).to("cpu", torch.float32) + 0.0).view(torch.int32)
    return torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)


@dataclass(frozen=True)
class Units:
    """What one matrix, or a part of one, has to choose from.

    Attributes:
        keys: int32, (units,), from :func:`keys_of`; small goes first.
        sizes: int32, (units,), weights in each unit; None if every unit has as many.
        size: weights in a unit if ``sizes`` is None.
    """

    keys: torch.Tensor
    sizes: torch.Tensor | None = None
    size: int = 1

    @property
    def weights(self) -> int:
        """Weights in all units."""
        return self.size * self.keys.numel() if self.sizes is None else int(self.sizes.sum())

    def weights_of(self, chosen: torch.Tensor) -> int:
        """Return the weights in some units.

        Args:
            chosen: bool, (units,).
        """
        return self.size * int(chosen.sum()) if self.sizes is None else int(self.sizes[chosen].sum())


def lowest(pool: Sequence[Units], count: int) -> list[torch.Tensor]:
    """Choose the units of the lowest keys until they hold ``count`` weights.

    With units of one weight the number is exact, with larger ones it is the nearest that whole units can give. Among
    equals the earlier one goes first. The threshold is found by counting, in two passes over the upper and lower half
    of the keys, not by sorting: memory stays at one key a unit and the result does not depend on threads.

    Args:
        pool: what to choose from, compared with each other.
        count: weights.

    Returns:
        For each member of the pool bool, (units,), True where a unit goes.
    """
    if count <= 0:
        return [torch.zeros(units.keys.numel(), dtype=torch.bool) for units in pool]
    upper = _first_reaching(_histogram(pool, None), count)
    lower = _first_reaching(_histogram(pool, upper.bin), count - upper.below)
    threshold = ((upper.bin - _BINS // 2) << 16) | lower.bin
    left = count - upper.below - lower.below
    chosen = []
    for units in pool:
        goes = units.keys < threshold
        ties = (units.keys == threshold).nonzero().reshape(-1)
        if left > 0 and ties.numel() and threshold != PROTECTED:
            sizes = torch.full_like(ties, units.size) if units.sizes is None else units.sizes[ties].long()
            total = sizes.cumsum(0)
            taken = 2 * total - sizes <= 2 * left
            goes[ties[taken]] = True
            # a unit that is left out ends the row of ties: nothing later goes in its stead
            left = left - int(sizes[taken].sum()) if bool(taken.all()) else 0
        chosen.append(goes)
    return chosen


@dataclass(frozen=True)
class _Place:
    bin: int
    below: int


def _first_reaching(histogram: torch.Tensor, count: int) -> _Place:
    """The first bin at which the running total reaches ``count``, and the total before it."""
    total = histogram.cumsum(0)
    at = min(int(torch.searchsorted(total, count)), histogram.numel() - 1)
    return _Place(at, int(total[at] - histogram[at]))


def _histogram(pool: Sequence[Units], upper: int | None) -> torch.Tensor:
    """Weights by the upper half of their key or, for the keys with a given upper half, by the lower one; int64."""
    total = torch.zeros(_BINS, dtype=torch.int64)
    for units in pool:
        sizes = units.sizes.split(_CHUNK) if units.sizes is not None else None
        for number, keys in enumerate(units.keys.split(_CHUNK)):
            high = (keys >> 16) + _BINS // 2
            bins = high if upper is None else (keys & 0xFFFF)[high == upper]
            if sizes is None:
                total += units.size * torch.bincount(bins, minlength=_BINS)
            else:
                size = sizes[number] if upper is None else sizes[number][high == upper]
                # whole numbers far below 2 ** 53: exact in double
                total += torch.bincount(bins, weights=size.double(), minlength=_BINS).long()
    return total
