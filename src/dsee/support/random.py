"""Support = N positions drawn without replacement, the control of the paper's figure 2."""

from __future__ import annotations

import torch

from dsee.support._registry import register_rule


@register_rule("random")
def random(weight: torch.Tensor, n: int, rank: int, generator: torch.Generator) -> torch.Tensor:  # noqa: ARG001 - one signature for all rules
    """Return ``n`` distinct positions, uniform over the matrix.

    Args:
        weight: W, shape (out, in); only its shape matters.
        n: N.
        rank: not used.
        generator: decides the draw.

    Returns:
        int64, shape (n,), ascending.
    """
    return torch.randperm(weight.numel(), generator=generator)[:n].sort().values
