"""Query, key and value of one input, and attention between them, in one call of the kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_void_p
from typing import Any, NamedTuple

import torch

from dsee.errors import InputError
from dsee.kernels.attend import CAttention, attention, check_mask, described, spread
from dsee.kernels.library import library
from dsee.kernels.matrix import SparseMatrix
from dsee.kernels.product import Side, compute


class CSelf(ctypes.Structure):
    """``dsee_self`` of dsee_kernels.h."""

    _fields_ = (
        ("attention", CAttention),
        *((name, c_void_p * 3) for name in ("w", "bias", "v", "u")),
        ("x", c_void_p),
    )


class Projection(NamedTuple):
    """x W' + b + (x V') U'.

    Attributes:
        matrix: W, (out, in).
        bias: float32 (out,), or None.
        side: U V packed for the matrix, or None.
    """

    matrix: SparseMatrix
    bias: torch.Tensor | None
    side: Side | None = None

    @property
    def addresses(self) -> tuple[int | None, ...]:
        """W, b, V and U for the kernels; this object has to live as long as they use them."""
        bias = None if self.bias is None else self.bias.data_ptr()
        sides = (None, None) if self.side is None else (self.side.v.address, self.side.u.data_ptr())
        return self.matrix.address, bias, *sides

    @property
    def fits(self) -> bool:
        """Whether the side branch was packed for the matrix."""
        return self.side is None or self.side.belongs_to(self.matrix)


def pointers(projections: Sequence[Projection]) -> list[Any]:
    """Return four arrays for the kernels: the addresses of each W, b, V and U.

    Args:
        projections: those of one call.
    """
    return [(c_void_p * len(row))(*row) for row in zip(*(each.addresses for each in projections), strict=True)]


def fit_together(query: Projection, key: Projection, value: Projection, dim: int) -> bool:
    """Whether one call can compute three projections.

    Args:
        query: makes the queries.
        key: makes the keys.
        value: makes the values.
        dim: features of a head.
    """
    first = query.matrix
    same = all(
        (each.matrix.kind, each.matrix.shape, each.matrix.chunk) == (first.kind, first.shape, first.chunk)
        for each in (key, value)
    )
    fits = all(each.fits for each in (query, key, value))
    return same and fits and dim > 0 and dim % 4 == 0 and first.shape[0] % dim == 0


def self_attention(
    x: torch.Tensor,
    query: Projection,
    key: Projection,
    value: Projection,
    dim: int,
    mask: torch.Tensor | None = None,
    *,
    scale: float,
) -> torch.Tensor:
    """Return softmax(scale Q K' + mask) V for each head of an input's own Q, K and V; no gradients.

    As :func:`dsee.kernels.attention` of the three products. Without the compiled kernels it is that.

    Args:
        x: float32 (batch, tokens, in) on the CPU.
        query: makes Q of x; the three fit together, see :func:`fit_together`.
        key: makes K.
        value: makes V.
        dim: features of a head.
        mask: broadcastable to (batch, heads, tokens, tokens): bool, True where a key may be seen, or float32, added to
            the scores; None for neither.
        scale: of the scores.

    Returns:
        float32 (batch, tokens, heads, dim), contiguous.

    Raises:
        InputError: shapes or dtypes that do not fit.
    """
    three = (query, key, value)
    if not fit_together(query, key, value, dim):
        shapes = ", ".join(f"{each.matrix.kind} {each.matrix.shape}" for each in three)
        raise InputError(
            f"self_attention: the projections {shapes} with heads of {dim} features do not fit together: they have to "
            "be of one kind and shape, side branches packed for them, and heads of a multiple of 4."
        )
    rows, columns = query.matrix.shape
    if x.dim() != 3 or x.shape[-1] != columns or x.dtype != torch.float32 or x.device.type != "cpu":
        raise InputError(f"self_attention: x has to be float32 (batch, tokens, {columns}) on the CPU.")
    batch, tokens, heads = x.shape[0], x.shape[1], rows // dim
    wanted = (batch, heads, tokens, tokens)
    check_mask("self_attention", mask, wanted)
    found = library()
    if found is None or not x.numel():
        q, k, v = (compute(x, *each, None).view(batch, tokens, heads, dim).transpose(1, 2) for each in three)
        return attention(q, k, v, mask, scale=scale)
    x = x.contiguous()
    mask = spread(mask, *wanted)
    kept = [each._replace(bias=None if each.bias is None else each.bias.contiguous()) for each in three]
    out = torch.empty(batch, tokens, heads, dim)
    sizes = [batch, heads, heads, tokens, tokens, dim]
    given = CSelf(
        described([None, None, None], out, mask, sizes, [0] * 9, scale, causal=False),
        *pointers(kept),
        x.data_ptr(),
    )
    found.self_attend(given, torch.get_num_threads())
    return out
