"""The authors' published support search as they have it, round by round: the baseline that the package's rule replaces.

100 rounds from one random direction; in each, S is forgotten, two passes alternate a QR step on U V with a hard
threshold of 0.01, and the first five rows of the R factor of what is left are appended to V.
"""

from __future__ import annotations

import torch

ROUNDS = 100
PASSES = 2
ROWS_PER_ROUND = 5
THRESHOLD = 0.01
#: On matrices smaller than BERT's the loop would reach the full rank, its residual vanish and its choice be arbitrary.
RANK_SHARE = 496 / 768


def reference_as_published(weight: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the last residual ``W - U V``; its N largest entries are the support.

    Args:
        weight: W, shape (out, in), fp32.
        seed: of the random direction.

    Returns:
        shape (out, in).
    """
    generator = torch.Generator().manual_seed(seed)
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
            growth = torch.linalg.qr(weight - low_rank - sparse).R[: min(ROWS_PER_ROUND, room)]
            right = torch.cat([right, growth])
    return residual
