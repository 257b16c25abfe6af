"""Support from a decomposition of W, as the authors' published code does it, which is not what the paper says.

The loop has no cardinality constraint and nothing to do with the rank of the update: 100 rounds of two passes with a
hard threshold of 0.01, the rank of V growing by 5 a round up to 496, then the N largest entries of the last residual.
It is here to reproduce that code, not as a recommendation: it takes over thirty times as long as the paper's reading,
and two seeds agree less. On matrices smaller than 768 the last rank is reached early and the other rounds refine it.
"""

from __future__ import annotations

import torch

from dsee.support._registry import register_rule
from dsee.support._top import top_n

ROUNDS = 100
PASSES = 2
ROWS_PER_ROUND = 5
THRESHOLD = 0.01
#: The loop ends at rank 496 of BERT's 768. A smaller matrix would be reproduced exactly at that rank, its residual
#: would vanish and the choice become arbitrary, so the same share of the full rank is the limit.
RANK_SHARE = 496 / 768


@register_rule("grebsmo-reference")
def grebsmo_reference(weight: torch.Tensor, n: int, rank: int, generator: torch.Generator) -> torch.Tensor:  # noqa: ARG001 - the published loop ignores the rank
    """Return the ``n`` largest entries of the residual that the published loop ends with.

    Where fewer than ``n`` entries exceed the threshold, the published code lets the mask become all ones; here the
    largest of the remaining residual fill up the support, so that it has exactly ``n`` positions.

    Args:
        weight: W, shape (out, in).
        n: N.
        rank: not used.
        generator: decides the starting direction.

    Returns:
        int64, shape (n,), ascending.
    """
    limit = min(1 + ROWS_PER_ROUND * (ROUNDS - 1), max(1, int(RANK_SHARE * min(weight.shape))))
    right = torch.randn(1, weight.shape[1], generator=generator)
    residual = weight
    for _ in range(ROUNDS):
        sparse = torch.zeros_like(weight)
        low_rank = sparse
        for _ in range(PASSES):
            rest = weight - sparse
            basis = torch.linalg.qr(rest @ right.T).Q
            right = basis.T @ rest
            low_rank = basis @ right
            residual = weight - low_rank
            sparse = torch.where(residual.abs() < THRESHOLD, 0.0, residual)
        room = limit - right.shape[0]
        if room > 0:
            # the R factor, not Q: that is what the published code appends
            growth = torch.linalg.qr(weight - low_rank - sparse).R[: min(ROWS_PER_ROUND, room)]
            right = torch.cat([right, growth])
    return top_n(residual.abs(), n)
