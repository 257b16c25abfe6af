"""An update as the product of two matrices, dW = B A: what a LoRA adapter can hold."""

from __future__ import annotations

import torch

from dsee.update.layer import DseeLayer


def lora_factors(layer: DseeLayer, adapter: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return B and A with B A = s (U V + S2).

    B = [s U, s C, s E], A = [V; E'; R]: the entries of S2 lie in a few whole rows and columns, each of which is a
    product of rank 1. As few as can be are taken, which for values in general position is the rank of S2 itself, so
    that no smaller exact LoRA exists. When that is no less than the matrix's own sizes, one factor is dW itself.

    Args:
        layer: a layer with an update.
        adapter: the adapter's name.

    Returns:
        B, shape (out, R), and A, shape (R, in), in the update's dtype; R is 0 when there is nothing but zeros in S2.
    """
    scaling = layer.dsee_scaling[adapter]
    ups, lows = [], []
    factors = layer.factors(adapter)
    if factors is not None:
        ups.append(factors[0] * scaling)
        lows.append(factors[1])
    if adapter in layer.dsee_S:
        sparse = layer.dsee_S[adapter]
        sparse.check()
        row, column = sparse.rows_and_columns()
        values = sparse.weight.detach()
        kept = values != 0
        shape = (sparse.out_features, sparse.in_features)
        up, low = _sparse_factors(row[kept], column[kept], values[kept], shape)
        ups.append(up * scaling)
        lows.append(low)
    B, A = torch.cat(ups, dim=1), torch.cat(lows, dim=0)
    (out_features, rank), in_features = B.shape, A.shape[1]
    if rank <= min(out_features, in_features):
        return B, A
    delta = (B.double() @ A.double()).to(B.dtype)
    if in_features <= out_features:
        return delta, torch.eye(in_features, dtype=A.dtype, device=A.device)
    return torch.eye(out_features, dtype=B.dtype, device=B.device), delta


def _sparse_factors(
    row: torch.Tensor, column: torch.Tensor, values: torch.Tensor, shape: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (out, k) and (k, in) whose product has the given entries and is zero elsewhere."""
    rows, columns = cover(row.tolist(), column.tolist())
    place_of_row = {r: i for i, r in enumerate(rows)}
    place_of_column = {c: len(rows) + i for i, c in enumerate(columns)}
    up = values.new_zeros(shape[0], len(rows) + len(columns))
    low = values.new_zeros(len(rows) + len(columns), shape[1])
    for r, i in place_of_row.items():
        up[r, i] = 1.0
    for c, i in place_of_column.items():
        low[i, c] = 1.0
    for r, c, value in zip(row.tolist(), column.tolist(), values, strict=True):
        if r in place_of_row:
            low[place_of_row[r], c] = value
        else:
            up[r, place_of_column[c]] = value
    return up, low


def cover(row: list[int], column: list[int]) -> tuple[list[int], list[int]]:
    """Return the fewest rows and columns that hold all entries, ascending.

    A largest set of entries of which no two share a row or column is found first, by augmenting paths; by Koenig's
    theorem the fewest lines are as many, and the paths that go no further say which.

    Args:
        row: row of each entry.
        column: column of each entry.
    """
    columns_of: dict[int, list[int]] = {}
    for r, c in sorted(zip(row, column, strict=True)):
        columns_of.setdefault(r, []).append(c)
    row_of: dict[int, int] = {}
    column_of: dict[int, int] = {}
    free = [r for r in columns_of if not _augment(r, columns_of, row_of, column_of)]
    reached_rows, reached_columns, waiting = set(free), set(), list(free)
    while waiting:
        for c in columns_of[waiting.pop()]:
            if c not in reached_columns:
                # matched, or the path to it would have been augmented
                reached_columns.add(c)
                if row_of[c] not in reached_rows:
                    reached_rows.add(row_of[c])
                    waiting.append(row_of[c])
    return sorted(set(columns_of) - reached_rows), sorted(reached_columns)


def _augment(start: int, columns_of: dict[int, list[int]], row_of: dict[int, int], column_of: dict[int, int]) -> bool:
    """Match ``start`` with a column, moving others on if need be; without recursion, since paths grow long."""
    came_from: dict[int, int] = {}
    waiting = [start]
    while waiting:
        r = waiting.pop()
        for c in columns_of[r]:
            if c in came_from:
                continue
            came_from[c] = r
            if c in row_of:
                waiting.append(row_of[c])
                continue
            while True:
                # each column of the path goes to the row it was reached from, which leaves its own for the next
                r = came_from[c]
                row_of[c], left = r, column_of.get(r)
                column_of[r] = c
                if left is None:
                    return True
                c = left
    return False
