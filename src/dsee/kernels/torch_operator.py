"""The kernels as an operator of torch, for ``torch.compile``.

In eager mode the kernels are called directly: torch's dispatcher costs more than a small product.
"""

from __future__ import annotations

from typing import cast

import torch

from dsee.kernels.int8 import Int8Matrix, int8_compute
from dsee.kernels.matrix import Kind, SparseMatrix, matrix_of
from dsee.kernels.product import compute


@torch.library.custom_op("dsee::sparse_linear", mutates_args=())
def _operator(
    x: torch.Tensor,
    start: torch.Tensor,
    column: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    kind: str,
    rows: int,
    chunk: int,
    activation: str,
) -> torch.Tensor:
    known: Kind = "blocks" if kind == "blocks" else "weights"
    matrix = matrix_of(known, (rows, x.shape[-1]), chunk, start, column, value)
    return compute(x, matrix, bias, None, activation or None)


@_operator.register_fake
def _(
    x: torch.Tensor,
    start: torch.Tensor,  # noqa: ARG001 - the operator's signature
    column: torch.Tensor,  # noqa: ARG001 - the operator's signature
    value: torch.Tensor,  # noqa: ARG001 - the operator's signature
    bias: torch.Tensor | None,  # noqa: ARG001 - the operator's signature
    kind: str,  # noqa: ARG001 - the operator's signature
    rows: int,
    chunk: int,  # noqa: ARG001 - the operator's signature
    activation: str,  # noqa: ARG001 - the operator's signature
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], rows))


def sparse_linear_op(
    x: torch.Tensor, matrix: SparseMatrix, bias: torch.Tensor | None, activation: str | None
) -> torch.Tensor:
    """Return what ``compute`` returns, as a node of a compiled graph.

    Args:
        x: float32 (..., in).
        matrix: the packed weight.
        bias: float32 (out,) or None.
        activation: its name or None.
    """
    found = _operator(
        x, matrix.start, matrix.column, matrix.value, bias, matrix.kind, matrix.shape[0], matrix.chunk, activation or ""
    )
    return cast("torch.Tensor", found)


@torch.library.custom_op("dsee::int8_linear", mutates_args=())
def _int8_operator(
    x: torch.Tensor,
    start: torch.Tensor,
    column: torch.Tensor,
    value: torch.Tensor,
    scale: torch.Tensor,
    sums: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
) -> torch.Tensor:
    matrix = Int8Matrix((scale.shape[0], x.shape[-1]), start, column, value, scale, sums)
    return int8_compute(x, matrix, bias, activation or None)


@_int8_operator.register_fake
def _(
    x: torch.Tensor,
    start: torch.Tensor,  # noqa: ARG001 - the operator's signature
    column: torch.Tensor,  # noqa: ARG001 - the operator's signature
    value: torch.Tensor,  # noqa: ARG001 - the operator's signature
    scale: torch.Tensor,
    sums: torch.Tensor,  # noqa: ARG001 - the operator's signature
    bias: torch.Tensor | None,  # noqa: ARG001 - the operator's signature
    activation: str,  # noqa: ARG001 - the operator's signature
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], scale.shape[0]))


def int8_linear_op(
    x: torch.Tensor, matrix: Int8Matrix, bias: torch.Tensor | None, activation: str | None
) -> torch.Tensor:
    """Return what ``int8_compute`` returns, as a node of a compiled graph.

    Args:
        x: float32 (..., in).
        matrix: the packed weight.
        bias: float32 (out,) or None.
        activation: its name or None.
    """
    numbers = (matrix.start, matrix.column, matrix.value, matrix.scale, matrix.sum)
    return cast("torch.Tensor", _int8_operator(x, *numbers, bias, activation or ""))
