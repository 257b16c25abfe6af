"""The folded form: W + s S2 in one matrix product, for an S2 too large to gather beside a product of its own.

Folding copies W for the length of a call, so it pays when the tokens are many; it reads the base's weight past the
base's own ``forward``, so it is for bases that do nothing else there. It is also for full precision only: in bfloat16
W + S2 would round away an S2 that is small beside W, where the sum of two products keeps it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from dsee.update.sparse_product import rows_and_columns, sampled_gradient

#: Fold from this many tokens on, and from this many gathered products (tokens x N) for each weight of the matrix; see
#: benchmarks/bench_sparse_product.py.
FOLD_TOKENS = 256
FOLD_PRODUCTS = 0.5

FULL_PRECISION = (torch.float32, torch.float64)


def has_hooks(module: nn.Module) -> bool:
    """Whether something wants to be called when the module is.

    Args:
        module: any module.
    """
    return bool(
        module._forward_pre_hooks or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_plain_product(base: nn.Module, x: torch.Tensor) -> bool:
    """Whether ``base(x)`` is nothing but a product with a plain weight, so that the product may be done for it.

    Args:
        base: the layer as it stands in the model, whatever is around it.
        x: its input.
    """
    if type(base) not in (nn.Linear, Conv1D) or "forward" in vars(base) or has_hooks(base):
        return False
    weight = base._parameters.get("weight")
    return (
        # a subclass of Tensor (a quantised or a sharded weight) brings its own product
        type(weight) is nn.Parameter
        and type(weight.data) is torch.Tensor
        and not weight.requires_grad
        and x.dtype == weight.dtype
        and x.device == weight.device
        and not torch.is_autocast_enabled(x.device.type)
    )


def can_fold(base: nn.Module, x: torch.Tensor) -> bool:
    """Whether S2 may be added to a copy of the base's weight: a plain product in full precision.

    Args:
        base: the layer as it stands in the model, whatever is around it.
        x: its input.
    """
    return x.dtype in FULL_PRECISION and is_plain_product(base, x)


def worth_folding(n_sparse: int, tokens: int, weights: int) -> bool:
    """Whether one copy of W costs less than gathering N products for each token.

    Args:
        n_sparse: N.
        tokens: vectors to multiply.
        weights: out x in.
    """
    return tokens >= FOLD_TOKENS and n_sparse * tokens >= FOLD_PRODUCTS * weights


def _fold(weight: torch.Tensor, values: torch.Tensor, indices: torch.Tensor, transposed: bool) -> torch.Tensor:
    folded = weight.clone(memory_format=torch.contiguous_format)
    place = indices.to(torch.int64)
    if transposed:
        rows, columns = rows_and_columns(indices, weight.shape[0])
        place = columns * weight.shape[1] + rows
    folded.view(-1).index_add_(0, place, values.to(weight.dtype))
    return folded


def _product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    values: torch.Tensor,
    indices: torch.Tensor,
    transposed: bool,
) -> torch.Tensor:
    folded = _fold(weight, values, indices, transposed)
    return nn.functional.linear(x, folded.T if transposed else folded, bias)


class _FoldedLinear(torch.autograd.Function):
    """Saves x and the values; W is the base's own and the folded copy is made afresh for the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        values: torch.Tensor,
        indices: torch.Tensor,
        transposed: bool,
    ) -> torch.Tensor:
        needs_x, _, _, needs_values, _, _ = ctx.needs_input_grad
        ctx.transposed, ctx.values_dtype = transposed, values.dtype
        ctx.save_for_backward(
            x if needs_values else None, weight if needs_x else None, values if needs_x else None, indices
        )
        return _product(x, weight, bias, values, indices, transposed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, values, indices = ctx.saved_tensors
        grad_x = grad_bias = grad_values = None
        if weight is not None:
            folded = _fold(weight, values, indices, ctx.transposed)
            grad_x = grad @ (folded.T if ctx.transposed else folded)
            del folded
        flat = grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[2]:
            grad_bias = flat.sum(0)
        if x is not None:
            grad_values = sampled_gradient(flat, x.reshape(-1, x.shape[-1]), indices, ctx.values_dtype)
        return grad_x, None, grad_bias, grad_values, None, None


def folded_product(base: Any, x: torch.Tensor, values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return ``base(x) + x S2^T`` by one matrix product.

    Args:
        base: a Linear or Conv1D for which :func:`can_fold` holds.
        x: (..., in).
        values: (N,), the entries of S2.
        indices: (N,), their flat positions in (out, in) orientation.

    Returns:
        (..., out).
    """
    arguments = (x, base.weight, base.bias, values, indices, isinstance(base, Conv1D))
    bias_learns = base.bias is not None and base.bias.requires_grad
    if torch.is_grad_enabled() and (x.requires_grad or values.requires_grad or bias_learns):
        result: torch.Tensor = _FoldedLinear.apply(*arguments)
        return result
    return _product(*arguments)
