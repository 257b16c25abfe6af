"""Support = the N largest weights. The reference code calls it ``omp``."""

from __future__ import annotations

import torch

from dsee.support._registry import register_rule
from dsee.support._top import top_n


@register_rule("magnitude")
def magnitude(weight: torch.Tensor, n: int, rank: int, generator: torch.Generator) -> torch.Tensor:  # noqa: ARG001 - one signature for all rules
    """Return the positions of the ``n`` largest ``|W|``.

    Args:
        weight: W, shape (out, in).
        n: N.
        rank: not used.
        generator: not used.

    Returns:
        int64, shape (n,), ascending.
    """
    return top_n(weight.abs(), n)
