"""Support = where the task pulls hardest, judged on a calibration set (as in RoSA and, times W, in SNIP)."""

from __future__ import annotations

import torch

from dsee.support._registry import register_rule


@register_rule("gradient")
def gradient(
    weight: torch.Tensor,  # noqa: ARG001 - one signature for all rules
    n: int,  # noqa: ARG001 - likewise
    rank: int,  # noqa: ARG001 - likewise
    generator: torch.Generator,  # noqa: ARG001 - likewise
    *,
    gradient: torch.Tensor,
) -> torch.Tensor:
    """Score each weight by ``sum over batches b of |dL_b / dW|``, which :func:`dsee.choose_support` accumulates.

    The sum of absolute values, and not the absolute value of the sum: S2 is tuned by Adam, whose steps follow the size
    of the gradients also where their sign changes from batch to batch.

    Args:
        weight: not used.
        n: not used: the N largest scores are taken.
        rank: not used.
        generator: not used.
        gradient: the accumulated gradient, shape (out, in).

    Returns:
        shape (out, in).
    """
    return gradient
