"""Support = what the best rank-r approximation of W leaves over most: one exact decomposition, no alternation."""

from __future__ import annotations

import torch

from dsee.support._low_rank import low_rank
from dsee.support._registry import register_rule


@register_rule("residual")
def residual(weight: torch.Tensor, n: int, rank: int, generator: torch.Generator) -> torch.Tensor:  # noqa: ARG001 - one signature for all rules
    """Score each weight by ``|W - W_r|``, W_r the truncated singular value decomposition of the update's rank.

    Args:
        weight: W, shape (out, in).
        n: not used: the N largest scores are taken.
        rank: r; 0 gives the magnitude support.
        generator: decides where the search for W_r starts on matrices wider and taller than 1024.

    Returns:
        shape (out, in).
    """
    return (weight - low_rank(weight, rank, generator)).abs()
