"""Support in few rows, so that the exact plain-LoRA export stays small.

S2 with k distinct rows has rank k at most, so that U V + S2 is a LoRA of rank r + k. A support spread over the matrix
costs a rank for nearly every entry.
"""

from __future__ import annotations

import torch

from dsee.support._low_rank import low_rank
from dsee.support._registry import register_rule
from dsee.support._top import top_n

#: Rows allowed, as a share of r: a quarter makes the exported rank at most 1.25 r, unless N needs more rows.
RANK_SHARE = 4


@register_rule("rows")
def rows(
    weight: torch.Tensor, n: int, rank: int, generator: torch.Generator, *, mask: torch.Tensor | None
) -> torch.Tensor:
    """Return the ``n`` largest ``|W - W_r|`` of the rows that leave most over, at most ``max(N / in, r / 4)`` rows.

    A row counts by the sum of squares of its largest residuals, as many as fall to each row. Where a mask keeps too
    few weights in those rows, the next best rows are added until there are N.

    Args:
        weight: W, shape (out, in).
        n: N.
        rank: r of the update.
        generator: see the rule ``residual``.
        mask: what may be chosen, shape (out, in), or None.

    Returns:
        int64, shape (n,), ascending.
    """
    left_over = (weight - low_rank(weight, rank, generator)).abs()
    allowed = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    columns = weight.shape[1]
    count = max(1, -(-n // columns), min(n, -(-rank // RANK_SHARE)))
    heaviest = (left_over * allowed).topk(min(columns, -(-n // count)), dim=1).values.square().sum(1)
    order = torch.argsort(heaviest, descending=True, stable=True)
    enough = int((allowed.sum(1)[order].cumsum(0) < n).sum()) + 1
    chosen = torch.zeros(weight.shape[0], dtype=torch.bool)
    chosen[order[: max(count, enough)]] = True
    return top_n(left_over, n, allowed & chosen[:, None])
