"""Support = positions that the user gives, for each matrix by name."""

from __future__ import annotations

from typing import Any

import torch

from dsee.errors import InputError


def flat_positions(given: Any, shape: tuple[int, int], name: str) -> torch.Tensor:
    """Read positions given as flat numbers or as (row, column) pairs.

    Args:
        given: list, tuple or integer tensor of flat positions ``row * in + column``, or of (row, column) pairs.
        shape: (out, in) of the matrix; also for GPT-2's Conv1D, which stores its weight as (in, out).
        name: the module's path, for messages.

    Returns:
        int64, shape (n,), ascending.

    Raises:
        InputError: not such positions, one outside the matrix, or one twice.
    """
    rows, columns = shape
    try:
        positions = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        positions = torch.empty(0, 0, 0)
    if positions.numel() == 0 and positions.dim() == 1:
        return torch.empty(0, dtype=torch.int64)
    pairs = positions.dim() == 2 and positions.shape[1] == 2
    whole = not positions.is_floating_point() and not positions.is_complex() and positions.dtype != torch.bool
    if not whole or not (positions.dim() == 1 or pairs):
        raise InputError(
            f"positions of {name}: expected a list of flat positions (row * {columns} + column) or of (row, column) "
            f"pairs, all whole numbers, got {_shown(given)}."
        )
    positions = positions.detach().to("cpu", torch.int64)
    limit = torch.tensor([rows, columns]) if pairs else torch.tensor(rows * columns)
    outside = (positions < 0) | (positions >= limit)
    outside = outside.any(1) if pairs else outside
    if outside.any():
        raise InputError(
            f"positions of {name}: {positions[outside][0].tolist()} lies outside the {rows} x {columns} matrix: "
            + (f"rows go from 0 to {rows - 1}, columns to {columns - 1}." if pairs else f"0 to {rows * columns - 1}.")
        )
    flat = (positions[:, 0] * columns + positions[:, 1] if pairs else positions).sort().values
    twice = flat[1:][flat[1:] == flat[:-1]]
    if twice.numel():
        place = int(twice[0])
        raise InputError(
            f"positions of {name}: position {place} (row {place // columns}, column {place % columns}) is given twice."
        )
    return flat


def _shown(given: Any) -> str:
    text = f"a tensor of shape {tuple(given.shape)}" if isinstance(given, torch.Tensor) else repr(given)
    return text if len(text) <= 80 else text[:77] + "..."
