"""The sparse product y += x S2^T for N stored entries, forward and backward, without anything dense that outlives it.

Two ways to the same numbers, chosen by shapes alone. Few entries are gathered, row-major and in chunks: for N up to
about 1,000 this costs what a rank-16 LoRA branch costs on a CPU, where a naive ``index_add`` under autograd keeps
(tokens x N) floats. Many entries are cheaper as a matrix product with S2 written out, and the values' gradient as the
blocks of a dense one, each thrown away once its entries are read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

#: Floats gathered at a time. Between 2**15 and 2**18 the speed is flat; below, large N suffers.
CHUNK_FLOATS = 1 << 17

#: Floats of a block of the dense gradient.
BLOCK_FLOATS = 1 << 18

#: From this share of W on (and this many tokens) matrix products beat gathering; benchmarks/bench_sparse_product.py.
DENSE_FROM = 0.015
DENSE_TOKENS = 64


def rows_and_columns(indices: torch.Tensor, in_features: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return output and input index of each entry.

    Args:
        indices: (N,) flat positions ``row * in + column``, any integer dtype.
        in_features: columns of the matrix.

    Returns:
        Two of int64, shape (N,).
    """
    flat = indices.to(torch.int64)
    return flat // in_features, flat % in_features


def _token_chunks(tokens: int, n: int) -> list[slice]:
    step = max(1, CHUNK_FLOATS // max(1, n))
    return [slice(start, start + step) for start in range(0, tokens, step)]


def _many(n: int, tokens: int, out_features: int, in_features: int) -> bool:
    return tokens >= DENSE_TOKENS and n >= DENSE_FROM * out_features * in_features


def _written_out(values: torch.Tensor, indices: torch.Tensor, out_features: int, in_features: int) -> torch.Tensor:
    flat = values.new_zeros(out_features * in_features)
    return flat.index_add_(0, indices.to(torch.int64), values).view(out_features, in_features)


def _add_gathered(
    target: torch.Tensor, to: torch.Tensor, source: torch.Tensor, at: torch.Tensor, values: torch.Tensor
) -> None:
    """``target[:, to] += source[:, at] * values`` with repeated ``to`` added up, in place."""
    for chunk in _token_chunks(source.shape[0], values.numel()):
        target[chunk].index_add_(1, to, source[chunk].index_select(1, at).mul_(values))


def _add_forward(y: torch.Tensor, x: torch.Tensor, values: torch.Tensor, indices: torch.Tensor) -> None:
    """``y += x S2^T`` in place; y (tokens, out), x (tokens, in)."""
    sizes = (y.shape[1], x.shape[1])
    values = values.to(x.dtype)
    if _many(values.numel(), x.shape[0], *sizes):
        y.addmm_(x, _written_out(values, indices, *sizes).T)
    else:
        rows, columns = rows_and_columns(indices, x.shape[1])
        _add_gathered(y, rows, x, columns, values)


def _input_gradient(grad: torch.Tensor, values: torch.Tensor, indices: torch.Tensor, in_features: int) -> torch.Tensor:
    """Return ``grad S2``, shape (tokens, in)."""
    values = values.to(grad.dtype)
    if _many(values.numel(), grad.shape[0], grad.shape[1], in_features):
        return grad @ _written_out(values, indices, grad.shape[1], in_features)
    rows, columns = rows_and_columns(indices, in_features)
    grad_x = grad.new_zeros(grad.shape[0], in_features)
    _add_gathered(grad_x, columns, grad, rows, values)
    return grad_x


def sampled_gradient(grad: torch.Tensor, x: torch.Tensor, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the entries of ``grad^T x`` at the stored positions, which are the gradient of S2's values.

    Args:
        grad: (tokens, out), gradient of the output.
        x: (tokens, in).
        indices: (N,) flat positions.
        dtype: of the result, and of the sums over chunks of tokens: in bf16 a sum over thousands of tokens would lose
            its small terms.

    Returns:
        (N,).
    """
    n, in_features = indices.numel(), x.shape[1]
    found = torch.zeros(n, dtype=dtype, device=x.device)
    if _many(n, x.shape[0], grad.shape[1], in_features):
        flat = indices.to(torch.int64)
        step = max(1, BLOCK_FLOATS // in_features)
        for start in range(0, grad.shape[1], step):
            block = (grad[:, start : start + step].T @ x).view(-1)
            place = flat - start * in_features
            inside = (place >= 0) & (place < block.numel())
            # by shapes alone: to count the entries of a block would make a GPU wait and break a compiled graph
            found += block[place.clamp(0, block.numel() - 1)].to(dtype) * inside
        return found
    rows, columns = rows_and_columns(indices, in_features)
    for chunk in _token_chunks(x.shape[0], n):
        gathered = grad[chunk].index_select(1, rows).mul_(x[chunk].index_select(1, columns))
        found += gathered.sum(0, dtype=dtype)
    return found


class _AddSparseProduct(torch.autograd.Function):
    """In place on ``y``, the update's own fresh output; saves x (which V's backward keeps anyway) and N values."""

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, x: torch.Tensor, values: torch.Tensor, indices: torch.Tensor
    ) -> torch.Tensor:
        # flattened in here: autograd tracks a write through a view by copying, and torch.compile not at all
        _add_forward(y.view(-1, y.shape[-1]), x, values, indices)
        ctx.mark_dirty(y)
        _, needs_x, needs_values, _ = ctx.needs_input_grad
        ctx.in_features, ctx.values_dtype, ctx.x_dtype = x.shape[1], values.dtype, x.dtype
        ctx.save_for_backward(x if needs_values else None, values if needs_x else None, indices)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, values, indices = ctx.saved_tensors
        grad_x = grad_values = None
        flat = grad.reshape(-1, grad.shape[-1]).to(ctx.x_dtype)
        if values is not None:
            grad_x = _input_gradient(flat, values, indices, ctx.in_features)
        if x is not None:
            grad_values = sampled_gradient(flat, x, indices, ctx.values_dtype)
        return grad if ctx.needs_input_grad[0] else None, grad_x, grad_values, None


def add_sparse_product(y: torch.Tensor, x: torch.Tensor, values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Add ``x S2^T`` to ``y`` in place and return it.

    Args:
        y: (..., out), freshly made by the caller: it is overwritten.
        x: (..., in), same leading shape and dtype as ``y``.
        values: (N,), the entries of S2.
        indices: (N,), their flat positions ``row * in + column``, any integer dtype.

    Returns:
        y, shape (..., out).
    """
    if values.numel() == 0 or x.numel() == 0:
        return y
    y, flat_x = y.contiguous(), x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled() and (y.requires_grad or x.requires_grad or values.requires_grad):
        result: torch.Tensor = _AddSparseProduct.apply(y, flat_x, values, indices)
        return result
    _add_forward(y.view(-1, y.shape[-1]), flat_x, values, indices)
    return y
