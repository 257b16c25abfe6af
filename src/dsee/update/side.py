"""A linear with a low-rank plus sparse branch beside its weight, without PEFT: y = x W^T + b + (x V^T) U^T + x S^T.

What :func:`dsee.merge` with ``policy="split"`` leaves on a sparse matrix: W keeps its zeros, and what of the update
would fall on them stays apart. The branch is plain parameters, so such a model runs, saves and exports as any other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from dsee.update.sparse_delta import index_dtype
from dsee.update.sparse_product import add_sparse_product, rows_and_columns

Pair = tuple[torch.Tensor, torch.Tensor]


class SideBranch(nn.Module):
    """The branch itself; a base class of the two linears below.

    Attributes:
        side_up: (out, k), the update's scale in it; None where k is 0.
        side_low: (k, in); None where k is 0.
        side_values: (n,), entries of S; None where n is 0.
        side_indices: (n,), their flat positions ``row * in + column`` in (out, in) orientation; None where n is 0.
    """

    side_up: nn.Parameter | None
    side_low: nn.Parameter | None
    side_values: nn.Parameter | None
    side_indices: torch.Tensor | None

    def _make_room(self, weight: torch.Tensor, shape: tuple[int, int], rank: int, n_sparse: int) -> None:
        def room(*sizes: int) -> nn.Parameter | None:
            return nn.Parameter(weight.new_zeros(sizes), requires_grad=False) if all(sizes) else None

        self.register_parameter("side_up", room(shape[0], rank))
        self.register_parameter("side_low", room(rank, shape[1]))
        self.register_parameter("side_values", room(n_sparse))
        indices = torch.zeros(n_sparse, dtype=index_dtype(*shape), device=weight.device) if n_sparse else None
        self.register_buffer("side_indices", indices)

    @property
    def side_sizes(self) -> tuple[int, int]:
        """K and n."""
        values = self.side_values
        return 0 if self.side_low is None else self.side_low.shape[0], 0 if values is None else values.numel()

    def add_side(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return y plus what the branch makes of x.

        Args:
            y: (..., out).
            x: (..., in).

        Returns:
            (..., out).
        """
        if self.side_low is not None and self.side_up is not None:
            y = y + nn.functional.linear(nn.functional.linear(x, self.side_low), self.side_up)
        if self.side_values is None or self.side_indices is None:
            return y
        if torch.compiler.is_compiling():
            # in chunks of a size known while tracing, other batches would not fit
            rows, columns = rows_and_columns(self.side_indices, x.shape[-1])
            return y.index_add(-1, rows, x.index_select(-1, columns) * self.side_values)
        return add_sparse_product(y.clone(), x, self.side_values, self.side_indices)


class SideLinear(SideBranch, nn.Linear):
    """A Linear with a branch."""

    def __init__(self, base: nn.Linear, rank: int, n_sparse: int) -> None:
        """Take over a linear's weight and bias, and make room for a branch, all zero.

        Args:
            base: the linear.
            rank: k of the branch.
            n_sparse: n of the branch.
        """
        nn.Linear.__init__(self, base.in_features, base.out_features, base.bias is not None, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self._make_room(base.weight, (base.out_features, base.in_features), rank, n_sparse)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's own name for it
        """Apply weight, bias and branch.

        Args:
            input: (..., in).

        Returns:
            (..., out).
        """
        return self.add_side(nn.Linear.forward(self, input), input)


class SideConv1D(SideBranch, Conv1D):
    """GPT-2's Conv1D, whose weight is (in, out), with a branch."""

    def __init__(self, base: Any, rank: int, n_sparse: int) -> None:
        """Take over a Conv1D's weight and bias, and make room for a branch, all zero.

        Args:
            base: the Conv1D.
            rank: k of the branch.
            n_sparse: n of the branch.
        """
        nn.Module.__init__(self)
        self.nf, self.nx = base.nf, base.nx
        self.weight, self.bias = base.weight, base.bias
        self._make_room(base.weight, (base.nf, base.nx), rank, n_sparse)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply weight, bias and branch.

        Args:
            x: (..., in).

        Returns:
            (..., out).
        """
        return self.add_side(Conv1D.forward(self, x), x)


def with_side(base: Any, factors: Pair | None, sparse: Pair | None) -> SideLinear | SideConv1D:
    """Put a branch on a linear; weight, bias and what else is registered on it are taken over, not copied.

    Args:
        base: a bare Linear or Conv1D.
        factors: U (out, k) and V (k, in), the scale in one of them.
        sparse: values (n,) and flat positions (n,).

    Returns:
        The linear to put in the base's place.
    """
    kind = SideConv1D if isinstance(base, Conv1D) else SideLinear
    rank, n_sparse = 0 if factors is None else factors[1].shape[0], 0 if sparse is None else sparse[0].numel()
    found = kind(base, rank, n_sparse)
    pairs = [("side_up", "side_low", factors), ("side_values", "side_indices", sparse)]
    for one, other, pair in pairs:
        if pair is not None and pair[0].numel():
            for name, tensor in zip((one, other), pair, strict=True):
                getattr(found, name).data.copy_(tensor)
    return found.train(base.training)
