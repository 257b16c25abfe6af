"""Support = the N largest weights. The reference code calls it ``omp``."""

from __future__ import annotations

import torch

from dsee.support._registry import register_rule


@register_rule("magnitude")
def magnitude(weight: torch.Tensor, n: int, rank: int, generator: torch.Generator) -> torch.Tensor:  # noqa: ARG001 - one signature for all rules
    """Score each weight by ``|W|``.

    Args:
        weight: W, shape (out, in).
        n: not used: the N largest scores are taken.
        rank: not used.
        generator: not used.

    Returns:
        shape (out, in).
    """
    return weight.abs()
