"""Exactly N positions, ties included."""

from __future__ import annotations

import torch


def top_n(score: torch.Tensor, n: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the flat positions of the ``n`` largest scores, ascending.

    A threshold would return more than ``n`` positions when scores tie; here the lowest position wins a tie, so that
    the result depends on the scores alone.

    Args:
        score: any shape, floating point, finite.
        n: how many positions, 0 <= n <= score.numel().
        mask: bool, the shape of ``score``: only positions where it is True are returned; at least ``n`` of them.

    Returns:
        int64, shape (n,), sorted.
    """
    flat = score.reshape(-1)
    if n == 0:
        return torch.empty(0, dtype=torch.int64, device=score.device)
    if n == flat.numel():
        return torch.arange(n, device=score.device)
    if mask is not None:
        flat = flat.masked_fill(~mask.reshape(-1), -torch.inf)
    threshold = torch.topk(flat, n, sorted=True).values[-1]
    above = torch.nonzero(flat > threshold).reshape(-1)
    ties = torch.nonzero(flat == threshold).reshape(-1)[: n - above.numel()]
    return torch.cat([above, ties]).sort().values
