"""A sparse weight packed for the kernels."""

from __future__ import annotations

import ctypes
import weakref
from ctypes import POINTER, c_float, c_int32, c_uint8
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from dsee.errors import InputError, nearest
from dsee.kernels.library import KINDS, CMatrix, library

Kind = Literal["blocks", "weights"]
#: Output rows of a group.
TALL = {"blocks": 4, "weights": 1}
#: A panel of activations should fit the first-level cache (32 KiB on most CPUs) with room for the weights beside it.
PANEL_BYTES = 24 * 1024
#: What a column number of one byte can say.
WIDEST = 256


def chunk_width(columns: int, panel: int) -> int:
    """Columns of a chunk: as many as keep a panel within the first-level cache, all chunks about equally wide.

    Args:
        columns: input features.
        panel: tokens of a full panel.
    """
    most = max(8, min(WIDEST, PANEL_BYTES // (4 * panel)))
    chunks = -(-columns // most)
    return min(WIDEST, -(-columns // (8 * chunks)) * 8)


@dataclass(frozen=True)
class SparseMatrix:
    """A sparse weight (out, in): groups of rows within chunks of columns, as dsee_kernels.h says.

    Attributes:
        kind: "blocks" (4 output rows x 1 column) or "weights" (single ones).
        shape: (out, in).
        chunk: columns of a chunk.
        start: int32 (chunks x groups + 1,), first entry of each group.
        column: uint8 (entries,), column within the chunk.
        value: float32 (entries, 4) for blocks, (entries,) for weights.
    """

    kind: Kind
    shape: tuple[int, int]
    chunk: int
    start: torch.Tensor
    column: torch.Tensor
    value: torch.Tensor
    _c: CMatrix | None = field(default=None, init=False, repr=False, compare=False)
    #: Of the C structure, 0 where there are no kernels.
    address: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check()
        found = library()
        if found is None:
            return
        matrix = self._to_c()
        fault = found.fault(matrix, self.start.numel(), self.column.numel(), self.value.numel())
        if fault:
            raise InputError(f"This packed sparse matrix of {self.shape[0]} x {self.shape[1]} is broken: {fault}.")
        object.__setattr__(self, "_c", matrix)
        object.__setattr__(self, "address", ctypes.addressof(matrix))
        _CHECKED[_place(self.start, self.column, self.value)] = self

    @property
    def entries(self) -> int:
        """Stored blocks or weights."""
        return self.column.numel()

    @property
    def density(self) -> float:
        """Stored numbers over all."""
        return self.value.numel() / (self.shape[0] * self.shape[1])

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return sum(t.numel() * t.element_size() for t in (self.start, self.column, self.value))

    @property
    def c(self) -> CMatrix:
        """What the library is given; this object has to live as long."""
        if self._c is None:
            raise InputError("There are no kernels here that could take a packed matrix.")
        return self._c

    def _check(self) -> None:
        if self.kind not in KINDS:
            raise InputError(
                f"kind={self.kind!r} is unknown.{nearest(self.kind, KINDS)} Use one of {', '.join(KINDS)}."
            )
        for name, dtype in (("start", torch.int32), ("column", torch.uint8), ("value", torch.float32)):
            tensor: torch.Tensor = getattr(self, name)
            if tensor.dtype != dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
                raise InputError(f"{name} of a packed sparse matrix has to be a contiguous {dtype} tensor on the CPU.")

    def _to_c(self) -> CMatrix:
        rows, columns = self.shape
        return CMatrix(
            kind=KINDS[self.kind],
            chunk=self.chunk,
            rows=rows,
            columns=columns,
            groups=-(-rows // TALL[self.kind]),
            start=pointer(self.start, c_int32),
            column=pointer(self.column, c_uint8),
            value=pointer(self.value, c_float),
        )

    def dense(self) -> torch.Tensor:
        """Return the weight, float32 (out, in)."""
        rows, columns = self.shape
        tall = TALL[self.kind]
        groups = -(-rows // tall)
        counts = (self.start[1:] - self.start[:-1]).long()
        owner = torch.repeat_interleave(torch.arange(counts.numel()), counts)
        at = owner // groups * self.chunk + self.column
        full = torch.zeros(groups, columns, tall)
        # a column may be there twice in a group that was not packed here; the kernels add both
        full.index_put_((owner % groups, at), self.value.view(-1, tall), accumulate=True)
        return full.transpose(1, 2).reshape(groups * tall, columns)[:rows].contiguous()


#: Matrices that were found whole, by where their numbers lie; as long as one lives, no other can lie there.
_CHECKED: weakref.WeakValueDictionary[tuple[int, int, int], SparseMatrix] = weakref.WeakValueDictionary()


def _place(start: torch.Tensor, column: torch.Tensor, value: torch.Tensor) -> tuple[int, int, int]:
    return start.data_ptr(), column.data_ptr(), value.data_ptr()


def matrix_of(
    kind: Kind, shape: tuple[int, int], chunk: int, start: torch.Tensor, column: torch.Tensor, value: torch.Tensor
) -> SparseMatrix:
    """Return the matrix of these numbers, without checking every entry again if it has been checked.

    Args:
        kind: "blocks" or "weights".
        shape: (out, in).
        chunk: columns of a chunk.
        start: int32 (chunks x groups + 1,).
        column: uint8 (entries,).
        value: float32 (entries, 4) or (entries,).

    Raises:
        InputError: the numbers make no matrix.
    """
    known = _CHECKED.get(_place(start, column, value))
    if known is not None and (known.kind, known.shape, known.chunk) == (kind, shape, chunk):
        sizes = [(t.numel(), u.numel()) for t, u in zip((start, column, value), _numbers(known), strict=True)]
        if all(given == had for given, had in sizes):
            return known
    return SparseMatrix(kind, shape, chunk, start, column, value)


def _numbers(matrix: SparseMatrix) -> tuple[torch.Tensor, ...]:
    return matrix.start, matrix.column, matrix.value


def pointer(tensor: torch.Tensor, kind: Any) -> Any:
    """Return a ctypes pointer to a tensor's first number; the tensor has to live as long.

    Args:
        tensor: contiguous, on the CPU.
        kind: the ctypes type of its numbers.
    """
    return ctypes.cast(tensor.data_ptr(), POINTER(kind))


def pack(weight: torch.Tensor, kind: Kind = "blocks", *, chunk: int | None = None, full: bool = False) -> SparseMatrix:
    """Pack the non-zeros of a weight.

    Args:
        weight: (out, in), any floating dtype and device; the values are kept as float32.
        kind: "blocks" keeps groups of four output rows x one column that hold any non-zero, whole; "weights" single
            non-zeros.
        chunk: columns of a chunk, at most 256; None takes what suits this machine.
        full: keep zeros too.

    Raises:
        InputError: not a matrix, one without numbers, or an unknown kind.
    """
    if weight.dim() != 2 or not weight.numel():
        raise InputError(f"pack: give a weight of shape (out, in), not {tuple(weight.shape)}.")
    if kind not in KINDS:
        raise InputError(f"pack: kind={kind!r} is unknown.{nearest(kind, KINDS)} Use one of {', '.join(KINDS)}.")
    rows, columns = weight.shape
    if chunk is None:
        found = library()
        chunk = chunk_width(columns, found.panels[kind] if found else 24)
    tall = TALL[kind]
    dense = weight.detach().to("cpu", torch.float32)
    dense = torch.nn.functional.pad(dense, (0, 0, 0, -rows % tall))
    groups = dense.view(-1, tall, columns).transpose(1, 2)
    kept = torch.ones(groups.shape[:2], dtype=torch.bool) if full else (groups != 0).any(-1)
    starts, found_columns, values, count = [], [], [], 0
    for first in range(0, columns, chunk):
        here = kept[:, first : first + chunk]
        starts.append(count + here.sum(1).cumsum(0) - here.sum(1))
        found_columns.append(here.nonzero()[:, 1])
        values.append(groups[:, first : first + chunk][here])
        count += int(here.sum())
    start = torch.cat([*starts, torch.tensor([count])]).to(torch.int32)
    value = torch.cat(values).contiguous()
    return SparseMatrix(
        kind,
        (rows, columns),
        chunk,
        start,
        torch.cat(found_columns).to(torch.uint8),
        value if kind == "blocks" else value.view(-1),
    )
