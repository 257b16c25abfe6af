"""Linears with a branch, as ``merge(policy="split")`` leaves them, on the kernels."""

from __future__ import annotations

from typing import Any

import torch

from dsee.kernels.linear import CLASSES, OnKernels, Packed, mark
from dsee.kernels.matrix import SparseMatrix, pack
from dsee.kernels.product import pack_side
from dsee.update.side import SideBranch, SideConv1D, SideLinear


class OnKernelsWithSide(OnKernels):
    """U V is the kernels' side branch, and S goes into the sparse matrix, where it belongs to no mask."""

    def _source(self) -> tuple[Any, ...]:
        own: Any = self
        tensors = (own.weight, own.side_up, own.side_low, own.side_values)
        return tuple(mark(tensor) for tensor in tensors if tensor is not None)

    def _pack(self, state: Packed) -> SparseMatrix:
        own: Any = self
        weight = self._oriented().detach()
        if own.side_values is not None:
            flat = weight.reshape(-1).index_add(0, own.side_indices.long(), own.side_values.detach())
            weight = flat.view(weight.shape)
        # to_kernels lets no 8-bit product come here
        matrix = pack(weight, "blocks" if state.kind == "blocks" else "weights")
        state.side = None if own.side_low is None else pack_side(own.side_up, own.side_low, matrix)
        return matrix

    def _dense(self, x: torch.Tensor) -> torch.Tensor:
        own: Any = self
        return SideBranch.add_side(own, super()._dense(x), x)


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
