"""Support from a decomposition of W, as the authors' published code reads it, which is not what the paper says.

That code has no cardinality constraint and nothing to do with the rank of the update: it alternates
``L = U V`` of rank 496 with ``S = W - L`` where that exceeds 0.01 in size, and takes the N largest entries of the last
``W - L``. It grows the rank by 5 in each of 100 rounds of two passes and forgets S at the start of each. The limit of
the growth is W's leading subspace, which this rule computes exactly; the two passes then keep S. So the reading
(rank, threshold, passes, choice) is the published one, the rounds are not: benchmarks/reference_loop.py has them,
and benchmarks/bench_support.py compares the two. It is here to reproduce that code, not as a recommendation.
"""

from __future__ import annotations

import torch

from dsee.support._low_rank import leading_rows
from dsee.support._registry import register_rule

RANK = 496
PASSES = 2
THRESHOLD = 0.01
#: The published rank is 496 of BERT's 768. A smaller matrix would be reproduced exactly at that rank, its residual
#: would vanish and the choice become arbitrary, so the same share of the full rank is the limit.
RANK_SHARE = 496 / 768


@register_rule("grebsmo-reference")
def grebsmo_reference(weight: torch.Tensor, n: int, rank: int, generator: torch.Generator) -> torch.Tensor:  # noqa: ARG001 - the published loop ignores the update's rank
    """Score each weight by ``|W - U V|`` after the published alternation, from an exact start.

    Where fewer than N entries exceed the threshold, the published code lets the mask become all ones; here the N
    largest are taken all the same.

    Args:
        weight: W, shape (out, in).
        n: not used: the N largest scores are taken.
        rank: not used.
        generator: see the rule ``residual``.

    Returns:
        shape (out, in).
    """
    limit = min(RANK, max(1, int(RANK_SHARE * min(weight.shape))))
    right = leading_rows(weight, limit, generator)
    residual = weight - (weight @ right.T) @ right
    for _ in range(PASSES):
        # W - S: the residual stays in W only where it is below the threshold
        rest = weight - torch.where(residual.abs() < THRESHOLD, 0.0, residual)
        basis = torch.linalg.qr(rest @ right.T).Q
        right = basis.T @ rest
        residual = weight - basis @ right
    return residual.abs()
