"""The sparse product y += x S2^T for N stored entries: forward and backward gather, nothing is ever dense.

Row-major and chunked: for N up to about 1,000 this costs what a rank-16 LoRA branch costs on a CPU, where a naive
``index_add`` under autograd keeps (tokens x N) floats and a dense scatter makes a whole matrix per call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

#: Floats gathered at a time. Between 2**15 and 2**18 the speed is flat; below, large N suffers.
CHUNK_FLOATS = 1 << 17


def _token_chunks(tokens: int, n: int) -> list[slice]:
    step = max(1, CHUNK_FLOATS // max(1, n))
    return [slice(start, start + step) for start in range(0, tokens, step)]


def _add_gathered(
    target: torch.Tensor, to: torch.Tensor, source: torch.Tensor, at: torch.Tensor, values: torch.Tensor
) -> None:
    """``target[:, to] += source[:, at] * values`` with repeated ``to`` added up, in place."""
    for chunk in _token_chunks(source.shape[0], values.numel()):
        target[chunk].index_add_(1, to, source[chunk].index_select(1, at).mul_(values))


class _AddSparseProduct(torch.autograd.Function):
    """In place on ``y``, the update's own fresh output; saves x (which V's backward keeps anyway) and N values."""

    @staticmethod
    def forward(
        ctx: Any,
        y: torch.Tensor,
        x: torch.Tensor,
        values: torch.Tensor,
        rows: torch.Tensor,
        columns: torch.Tensor,
    ) -> torch.Tensor:
        # flattened in here: autograd tracks a write through a view by copying, and torch.compile not at all
        _add_gathered(y.view(-1, y.shape[-1]), rows, x, columns, values.to(x.dtype))
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, values, rows, columns)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, values, rows, columns = ctx.saved_tensors
        grad_x = grad_values = None
        grad_y, grad = grad, grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[1]:
            grad_x = torch.zeros_like(x)
            _add_gathered(grad_x, columns, grad.to(x.dtype), rows, values.to(x.dtype))
        if ctx.needs_input_grad[2]:
            # summed in the parameter's dtype: in bf16 a sum over thousands of tokens would lose its small terms
            grad_values = torch.zeros_like(values)
            for chunk in _token_chunks(x.shape[0], values.numel()):
                gathered = grad[chunk].index_select(1, rows).mul_(x[chunk].index_select(1, columns))
                grad_values += gathered.sum(0, dtype=values.dtype)
        return grad_y if ctx.needs_input_grad[0] else None, grad_x, grad_values, None, None


def add_sparse_product(
    y: torch.Tensor, x: torch.Tensor, values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Add ``x S2^T`` to ``y`` in place and return it.

    Args:
        y: (..., out), freshly made by the caller: it is overwritten.
        x: (..., in), same leading shape and dtype as ``y``.
        values: (N,), the entries of S2.
        rows: (N,) int64, output index of each entry.
        columns: (N,) int64, input index of each entry.

    Returns:
        y, shape (..., out).
    """
    if values.numel() == 0 or x.numel() == 0:
        return y
    y, flat_x = y.contiguous(), x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and (y.requires_grad or x.requires_grad or values.requires_grad):
        result: torch.Tensor = _AddSparseProduct.apply(y, flat_x, values, rows, columns)
        return result
    _add_gathered(y.view(-1, y.shape[-1]), rows, flat_x, columns, values.to(x.dtype))
    return y
