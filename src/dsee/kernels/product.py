"""The product of activations with a packed sparse matrix."""

from __future__ import annotations

import ctypes
from ctypes import c_float
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from dsee.errors import InputError, nearest
from dsee.kernels.library import ACTIVATIONS, CProduct, library
from dsee.kernels.matrix import SparseMatrix, pack, pointer

_FUNCTIONS: dict[str, Any] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
}


@dataclass(frozen=True)
class Side:
    """A low-rank branch s U V beside a sparse matrix, packed.

    Attributes:
        v: (rank, in), packed in full, of the sparse matrix's kind and chunk.
        u: float32 (ceil(out / 4), rank, 4), with the scale in it.
        dense_u: float32 (out, rank).
    """

    v: SparseMatrix
    u: torch.Tensor
    dense_u: torch.Tensor

    def belongs_to(self, matrix: SparseMatrix) -> bool:
        """Whether it was packed for such a matrix.

        Args:
            matrix: what it may lie beside.
        """
        rows, columns = self.dense_u.shape[0], self.v.shape[1]
        return (rows, columns) == matrix.shape and (self.v.kind, self.v.chunk) == (matrix.kind, matrix.chunk)


def pack_side(u: torch.Tensor, v: torch.Tensor, beside: SparseMatrix) -> Side:
    """Pack a low-rank branch for a sparse matrix.

    Args:
        u: (out, rank), with the scale in it.
        v: (rank, in).
        beside: the sparse matrix, (out, in).

    Raises:
        InputError: the shapes do not fit.
    """
    rows, columns = beside.shape
    if u.dim() != 2 or v.dim() != 2 or u.shape[0] != rows or v.shape[1] != columns or u.shape[1] != v.shape[0]:
        raise InputError(f"pack_side: U {tuple(u.shape)} and V {tuple(v.shape)} do not fit a weight of {beside.shape}.")
    dense = u.detach().to("cpu", torch.float32).contiguous()
    padded = functional.pad(dense, (0, 0, 0, -rows % 4))
    quads = padded.view(-1, 4, dense.shape[1]).transpose(1, 2).contiguous()
    return Side(pack(v, beside.kind, chunk=beside.chunk, full=True), quads, dense)


def activate(x: torch.Tensor, activation: str | None) -> torch.Tensor:
    """Apply an activation function by its name here; None does nothing.

    Args:
        x: any shape.
        activation: a key of ``ACTIVATIONS``.
    """
    found: torch.Tensor = x if activation is None else _FUNCTIONS[activation](x)
    return found


def sparse_linear(
    x: torch.Tensor,
    matrix: SparseMatrix,
    bias: torch.Tensor | None = None,
    *,
    side: Side | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """Return act(x W' + b + (x V') U') with a packed sparse W; no gradients.

    Columns of x that no weight reads do not count: a NaN there does not reach the result, as it would in a dense
    product. Without the compiled kernels the same is computed densely.

    Args:
        x: float32 (..., in) on the CPU.
        matrix: W, packed from (out, in).
        bias: b, float32 (out,), or None.
        side: a low-rank branch packed for the same matrix, or None.
        activation: "relu", "gelu", "gelu_tanh", "silu" or None.

    Returns:
        float32 (..., out).

    Raises:
        InputError: a shape, dtype or device that does not fit, or an unknown activation.
    """
    rows, columns = matrix.shape
    if activation not in ACTIVATIONS:
        raise InputError(
            f"activation={activation!r} is unknown.{nearest(str(activation), [a for a in ACTIVATIONS if a])}"
        )
    if x.dtype != torch.float32 or x.device.type != "cpu" or x.dim() < 1 or x.shape[-1] != columns:
        raise InputError(
            f"sparse_linear: x has to be float32 (..., {columns}) on the CPU, not {x.dtype} {tuple(x.shape)}."
        )
    if bias is not None and (bias.shape != (rows,) or bias.dtype != torch.float32 or bias.device.type != "cpu"):
        raise InputError(f"sparse_linear: the bias has to be float32 ({rows},) on the CPU.")
    if side is not None and not side.belongs_to(matrix):
        raise InputError("sparse_linear: the side branch was packed for another matrix.")
    return compute(x, matrix, bias, side, activation)


def compute(
    x: torch.Tensor, matrix: SparseMatrix, bias: torch.Tensor | None, side: Side | None, activation: str | None
) -> torch.Tensor:
    """Do what :func:`sparse_linear` does, without its checks.

    Args:
        x: float32 (..., in) on the CPU.
        matrix: W.
        bias: float32 (out,) or None.
        side: a low-rank branch or None.
        activation: a key of ``ACTIVATIONS``.
    """
    rows, columns = matrix.shape
    found = library()
    if found is None:
        y = functional.linear(x, matrix.dense(), bias)
        if side is not None:
            y = y + functional.linear(functional.linear(x, side.v.dense()), side.dense_u)
        return activate(y, activation)
    x = x.contiguous()
    y = torch.empty((*x.shape[:-1], rows))
    bias = None if bias is None else bias.contiguous()
    tokens, threads = y.numel() // rows, torch.get_num_threads()
    if side is None:
        place = None if bias is None else bias.data_ptr()
        found.linear(matrix.address, place, x.data_ptr(), y.data_ptr(), tokens, ACTIVATIONS[activation], threads)
        return y
    product = CProduct(
        w=ctypes.pointer(matrix.c),
        v=ctypes.pointer(side.v.c),
        u=pointer(side.u, c_float),
        bias=None if bias is None else pointer(bias, c_float),
        x=pointer(x, c_float),
        y=pointer(y, c_float),
        tokens=tokens,
        ldx=columns,
        ldy=rows,
        activation=ACTIVATIONS[activation],
    )
    found.run(product, threads)
    return y
