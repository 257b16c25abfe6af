"""Linears with a branch, as ``merge(policy="split")`` leaves them, on the kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from dsee.kernels.linear import CLASSES, OnKernels, kernels_can, mark
from dsee.kernels.matrix import SparseMatrix, pack
from dsee.kernels.product import activate, compute, pack_side
from dsee.update.side import SideBranch, SideConv1D, SideLinear


class OnKernelsWithSide(OnKernels):
    """U V is the kernels' side branch, and S goes into the sparse matrix, where it belongs to no mask."""

    def packed(self) -> SparseMatrix:
        """Return W + S, packed, and pack U V beside it; made again if one of them has changed since."""
        own: Any = self
        state = self._dsee_sparse
        tensors = (own.weight, own.side_up, own.side_low, own.side_values)
        source = tuple(mark(tensor) for tensor in tensors if tensor is not None)
        if state.matrix is None or source != state.source:
            weight = self._oriented().detach()
            if own.side_values is not None:
                flat = weight.reshape(-1).index_add(0, own.side_indices.long(), own.side_values.detach())
                weight = flat.view(weight.shape)
            state.matrix = pack(weight, state.kind)
            state.side = None if own.side_low is None else pack_side(own.side_up, own.side_low, state.matrix)
            state.source = source
        return state.matrix

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's name
        """Return act(x (W + S)' + b + (x V') U'): by the kernels, or densely where they cannot.

        Args:
            input: (..., in).

        Returns:
            (..., out).
        """
        own: Any = self
        state = self._dsee_sparse
        others = (own.bias, own.side_up, own.side_low, own.side_values)
        if torch.compiler.is_compiling() or not kernels_can(input, own.weight, *others):
            dense = functional.linear(input, self._oriented(), own.bias)
            return activate(SideBranch.add_side(own, dense, input), state.activation)
        matrix = self.packed()
        return compute(input, matrix, own.bias, state.side, state.activation)


class SparseSideLinear(OnKernelsWithSide, SideLinear):
    """A ``SideLinear`` on the kernels."""


class SparseSideConv1D(OnKernelsWithSide, SideConv1D):
    """A ``SideConv1D``, whose weight is (in, out), on the kernels."""

    def _oriented(self) -> torch.Tensor:
        return super()._oriented().T


def register() -> None:
    """Let ``to_kernels`` take linears with a branch."""
    CLASSES[SideLinear] = SparseSideLinear
    CLASSES[SideConv1D] = SparseSideConv1D
