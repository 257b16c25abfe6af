"""Support from a decomposition of W, as the paper states it: rank at most r, at most N non-zeros.

Greedy bilateral smoothing (GreBsmo, Zhou and Tao 2013) for
``min 0.5 ||W - U V - S||_F^2  subject to  rank(U V) <= r, card(S) <= N``
without a singular value decomposition: QR steps alternate with a hard choice of the N largest residuals, and the rank
grows greedily along the directions in which the residual is largest. Only the positions of S are kept.
"""

from __future__ import annotations

import torch

from dsee.support._registry import register_rule
from dsee.support._top import top_n

#: Passes after the last growth of the rank. The support of real query and value matrices settles within a dozen.
MAX_PASSES = 60
#: The rank grows from 1 to r in about this many steps; one step would start from a purely random subspace.
GROWTH_STEPS = 4
#: Passes in a row that must leave the support unchanged before the search ends.
PATIENCE = 3


@register_rule("grebsmo")
def grebsmo(weight: torch.Tensor, n: int, rank: int, generator: torch.Generator) -> torch.Tensor:
    """Return the support of S in ``W ~ U V + S``.

    Args:
        weight: W, shape (out, in).
        n: N, the cardinality of S.
        rank: r, the rank of U V; 0 gives the magnitude support.
        generator: decides the starting directions.

    Returns:
        int64, shape (n,), ascending.
    """
    rank = min(rank, *weight.shape)
    if rank == 0:
        return top_n(weight.abs(), n)
    right = torch.randn(1, weight.shape[1], generator=generator)
    positions = top_n(weight.abs(), n)
    low_rank = torch.zeros_like(weight)
    settled = 0
    for _ in range(MAX_PASSES):
        # S holds the whole residual on its support, so W - S is W off the support and U V on it
        rest = weight.clone()
        rest.view(-1)[positions] = low_rank.view(-1)[positions]
        basis = torch.linalg.qr(rest @ right.T).Q
        right = basis.T @ rest
        low_rank = basis @ right
        residual = weight - low_rank
        previous, positions = positions, top_n(residual.abs(), n)
        if right.shape[0] < rank:
            right = _grow(right, residual, positions, min(rank - right.shape[0], -(-rank // GROWTH_STEPS)))
            continue
        settled = settled + 1 if torch.equal(previous, positions) else 0
        # one unchanged pass may be chance; a few in a row mean that the alternation has converged
        if settled == PATIENCE:
            break
    return positions


def _grow(right: torch.Tensor, residual: torch.Tensor, positions: torch.Tensor, by: int) -> torch.Tensor:
    """Add ``by`` rows to V (rank, in): the heaviest rows of the residual off the support.

    Rows of the residual stand in for its leading singular vectors; the QR steps that follow rotate them there.
    """
    off_support = residual.clone()
    off_support.view(-1)[positions] = 0.0
    rows = off_support[off_support.square().sum(1).topk(by).indices]
    return torch.cat([right, rows])
