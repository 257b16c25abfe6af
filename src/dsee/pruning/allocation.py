"""Spending a budget: what to give up in each of several chains of removals so that the rest costs at most so much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsee.errors import InputError


@dataclass(frozen=True)
class Chain:
    """The heads, or the neurons, of one layer in the order in which they would go.

    Attributes:
        removals: how many may go, ascending, 0 first.
        lost: importance given up at each.
        cost: cost of what remains at each, never rising.
        start: place in ``removals`` of what is gone already.
    """

    removals: list[int]
    lost: NDArray[np.float64]
    cost: NDArray[np.float64]
    start: int = 0


#: Cells of the cost axis, unless all costs are multiples of something larger: 1 / 50,000 of the dense cost at most.
CELLS = 50_000


def allocate(chains: list[Chain], target: float, dense: float, asked: str) -> list[int]:
    """Choose how many go from each chain, so that the rest costs at most the target and the least importance is lost.

    The multiple-choice knapsack problem, solved exactly by dynamic programming over costs where these are whole numbers
    with a common factor, as FLOPs and parameters are; otherwise costs are rounded up to 1 / 50,000 of the dense cost.
    Then whatever still fits is put back, the most important per cost first.

    Args:
        chains: one for each layer's heads and each layer's neurons.
        target: what all together may cost.
        dense: what the target is a share of.
        asked: what the user asked for, for messages.

    Returns:
        How many go from each chain; no chain's last removal could be undone.

    Raises:
        InputError: the target is below what cannot go.
    """
    places = [len(chain.removals) - 1 for chain in chains]
    least = _cost(chains, places)
    if least > target:
        raise InputError(
            f"{asked} cannot be met: one head and the fewest neurons in each layer still cost {least / dense:.1%} of "
            "the dense encoder. Ask for a larger share, or set a smaller multiple_of."
        )
    places = _cheapest(chains, target, _cell(chains, dense)) or places
    _put_back(chains, places, target)
    return [chain.removals[place] for chain, place in zip(chains, places, strict=True)]


def _cost(chains: list[Chain], places: list[int]) -> float:
    return float(sum(float(chain.cost[place]) for chain, place in zip(chains, places, strict=True)))


def _cell(chains: list[Chain], dense: float) -> float:
    """Width of a cell of the cost axis."""
    costs = np.concatenate([chain.cost - chain.cost[-1] for chain in chains])
    if (costs == np.floor(costs)).all() and costs.max() < 2**53:
        common = float(np.gcd.reduce(costs.astype(np.int64)))
        if common and dense / common <= CELLS:
            return common
    return dense / CELLS


def _cheapest(chains: list[Chain], target: float, cell: float) -> list[int] | None:
    """Places that lose the least importance at no more than the target; None if rounding leaves no such choice."""
    # costs are counted from where everything is gone that may go
    cells = int((target - _cost(chains, [-1] * len(chains))) // cell)
    # least importance lost by the chains so far at each cost, and the place of the last one that does it
    best = np.zeros(cells + 1)
    chosen: list[NDArray[np.int32]] = []
    for chain in chains:
        widths = _widths(chain, cell)
        following = np.full(cells + 1, np.inf)
        place_of = np.full(cells + 1, -1, dtype=np.int32)
        for place in range(chain.start, len(widths)):
            width = int(widths[place])
            if width > cells:
                continue
            lost = best[: cells + 1 - width] + chain.lost[place]
            better = lost < following[width:]
            following[width:][better] = lost[better]
            place_of[width:][better] = place
        best = following
        chosen.append(place_of)
    if not np.isfinite(best[cells]):
        return None
    places, left = [0] * len(chains), cells
    for index in range(len(chains) - 1, -1, -1):
        places[index] = int(chosen[index][left])
        left -= int(_widths(chains[index], cell)[places[index]])
    return places


def _widths(chain: Chain, cell: float) -> NDArray[np.int64]:
    widths: NDArray[np.int64] = np.ceil((chain.cost - chain.cost[-1]) / cell).astype(np.int64)
    return widths


def _put_back(chains: list[Chain], places: list[int], target: float) -> None:
    """Undo removals as long as one fits."""
    while True:
        fitting = []
        for index, (chain, place) in enumerate(zip(chains, places, strict=True)):
            if place == 0:
                continue
            more = float(chain.cost[place - 1] - chain.cost[place])
            worth = float(chain.lost[place] - chain.lost[place - 1])
            if _cost(chains, [*places[:index], place - 1, *places[index + 1 :]]) <= target:
                fitting.append((more > 0, -worth / more if more > 0 else 0.0, index))
        if not fitting:
            return
        places[min(fitting)[2]] -= 1
