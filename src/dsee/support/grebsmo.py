"""Support from a decomposition of W, as the paper states it: rank at most r, at most N non-zeros.

Greedy bilateral smoothing (GreBsmo, Zhou and Tao 2013) for
``min 0.5 ||W - U V - S||_F^2  subject to  rank(U V) <= r, card(S) <= N``:
QR steps on U and V alternate with a hard choice of the N largest residuals. GreBsmo grows the rank from random
directions, to spare a singular value decomposition; here it starts from the exact one, which is as fast at these sizes,
reached a lower objective than every random start on every matrix measured, and does not depend on the seed. Only the
positions of S are kept.
"""

from __future__ import annotations

import torch

from dsee.support._low_rank import leading_rows
from dsee.support._registry import register_rule
from dsee.support._top import top_n

#: The support of real query and value matrices settles within half a dozen passes.
MAX_PASSES = 60
#: Passes in a row that must leave the support unchanged before the search ends.
PATIENCE = 2


@register_rule("grebsmo")
def grebsmo(
    weight: torch.Tensor, n: int, rank: int, generator: torch.Generator, *, mask: torch.Tensor | None
) -> torch.Tensor:
    """Return the support of S in ``W ~ U V + S``.

    Args:
        weight: W, shape (out, in).
        n: N, the cardinality of S.
        rank: r, the rank of U V; 0 gives the magnitude support.
        generator: see the rule ``residual``.
        mask: where S may be non-zero, shape (out, in), or None.

    Returns:
        int64, shape (n,), ascending.
    """
    rank = min(rank, *weight.shape)
    if rank == 0:
        return top_n(weight.abs(), n, mask)
    right = leading_rows(weight, rank, generator)
    low_rank = (weight @ right.T) @ right
    positions = top_n((weight - low_rank).abs(), n, mask)
    settled = 0
    for _ in range(MAX_PASSES):
        # S holds the whole residual on its support, so W - S is W off the support and U V on it
        rest = weight.clone()
        rest.view(-1)[positions] = low_rank.view(-1)[positions]
        basis = torch.linalg.qr(rest @ right.T).Q
        right = basis.T @ rest
        low_rank = basis @ right
        previous, positions = positions, top_n((weight - low_rank).abs(), n, mask)
        settled = settled + 1 if torch.equal(previous, positions) else 0
        # one unchanged pass may be chance; a few in a row mean that the alternation has converged
        if settled == PATIENCE:
            break
    return positions
