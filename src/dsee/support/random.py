"""Support = N positions drawn without replacement, the control of the paper's figure 2."""

from __future__ import annotations

import torch

from dsee.support._registry import register_rule


@register_rule("random")
def random(
    weight: torch.Tensor,
    n: int,
    rank: int,  # noqa: ARG001 - one signature for all rules
    generator: torch.Generator,
    *,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Return ``n`` distinct positions, uniform over the matrix or over what its mask keeps.

    Args:
        weight: W, shape (out, in); only its shape matters.
        n: N.
        rank: not used.
        generator: decides the draw.
        mask: what may be chosen, shape (out, in), or None.

    Returns:
        int64, shape (n,), ascending.
    """
    if mask is None:
        return torch.randperm(weight.numel(), generator=generator)[:n].sort().values
    kept = torch.nonzero(mask.reshape(-1)).reshape(-1)
    return kept[torch.randperm(kept.numel(), generator=generator)[:n]].sort().values
