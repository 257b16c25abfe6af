"""U as a linear whose backward pass is fast on CPUs.

The gradient of U is g^T h, (out, tokens) x (tokens, r), and that of its input g U, (tokens, out) x (out, r). For the
few columns of a small rank, matrix libraries are up to fifteen times slower at these than at the transposed products
h^T g and U^T g^T, which are the same numbers: at r = 8 plain autograd spends half a base product's time on them.
``benchmarks/bench_ranks.py`` measures it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

#: From this rank on the plain products are as fast as their transposes.
TRANSPOSE_BELOW = 16


class _Thin(torch.autograd.Function):
    """y = h U^T for h (tokens, r) and U (out, r)."""

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(h, weight)
        return h @ weight.t()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        h, weight = ctx.saved_tensors
        (grad,) = grads
        grad_h = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_h = (weight.t() @ grad.t()).t().contiguous()
        if ctx.needs_input_grad[1]:
            grad_weight = (h.t() @ grad).t().contiguous()
        return grad_h, grad_weight


def thin_product(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return hidden U^T, the values of ``torch.nn.functional.linear``.

    Args:
        hidden: (..., r).
        weight: U, (out, r).

    Returns:
        (..., out).
    """
    # other devices have other libraries, and autocast casts what it sees inside the plain function
    elsewhere = hidden.device.type != "cpu" or torch.is_autocast_enabled("cpu")
    if elsewhere or weight.shape[1] >= TRANSPOSE_BELOW or not torch.is_grad_enabled():
        return nn.functional.linear(hidden, weight)
    flat: torch.Tensor = _Thin.apply(hidden.reshape(-1, hidden.shape[-1]), weight)
    return flat.view(*hidden.shape[:-1], weight.shape[0])


class ThinLinear(nn.Linear):
    """A linear without bias from a few features to many, by :func:`thin_product`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's own name for it
        """Apply the map.

        Args:
            input: (..., r).

        Returns:
            (..., out).
        """
        return thin_product(input, self.weight)
