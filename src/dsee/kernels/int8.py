"""8-bit integer products: weights in 4 x 4 blocks with a scale for each row, activations quantised on the way."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from dsee.errors import InputError
from dsee.kernels.library import ACTIVATIONS, FAULTS, library

#: Rows and columns of a block.
SIDE = 4
MOST = 127
#: Activations have 7 bits, so that the sum of two products fits 16 bits and nothing saturates.
STEPS = 127


class CInt8(ctypes.Structure):
    """``dsee_int8`` of dsee_kernels.h."""

    _fields_ = (
        *((name, c_int64) for name in ("rows", "columns", "groups")),
        *((name, c_void_p) for name in ("start", "column", "value", "scale", "sum", "bias", "x", "y")),
        ("tokens", c_int64),
        ("activation", c_int32),
    )


@dataclass(frozen=True)
class Int8Matrix:
    """A weight (out, in) as 8-bit integers, only blocks of 4 x 4 that hold a non-zero.

    Attributes:
        shape: (out, in).
        start: int32 (ceil(out / 4) + 1,), first block of each four rows.
        column: uint16 (blocks,), the first of a block's columns over 4.
        value: int8 (blocks, 4 rows, 4 columns).
        scale: float32 (out,); the weight is scale times value.
        sum: float32 (out,), of a row's values.
    """

    shape: tuple[int, int]
    start: torch.Tensor
    column: torch.Tensor
    value: torch.Tensor
    scale: torch.Tensor
    sum: torch.Tensor
    _c: CInt8 = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        dtypes = (torch.int32, torch.uint16, torch.int8, torch.float32, torch.float32)
        for name, dtype in zip(("start", "column", "value", "scale", "sum"), dtypes, strict=True):
            tensor: torch.Tensor = getattr(self, name)
            if tensor.dtype != dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
                raise InputError(f"{name} of an 8-bit matrix has to be a contiguous {dtype} tensor on the CPU.")
        if self.scale.shape != (self.shape[0],) or self.sum.shape != (self.shape[0],):
            raise InputError(f"An 8-bit matrix of {self.shape[0]} rows needs a scale and a sum for each.")
        places = [t.data_ptr() for t in (self.start, self.column, self.value, self.scale, self.sum)]
        object.__setattr__(self, "_c", CInt8(*self.shape, -(-self.shape[0] // SIDE), *places))
        found = library()
        if found is not None:
            code = found.int8_fault(self._c, self.start.numel(), self.column.numel(), self.value.numel())
            if code:
                raise InputError(f"This packed 8-bit matrix of {self.shape} is broken: {FAULTS.get(code, code)}.")

    def c(self) -> CInt8:
        """What the library is given, without bias and activations; this object has to live as long."""
        # a copy of bytes: a fresh structure takes several times as long, and small products take microseconds
        return CInt8.from_buffer_copy(self._c)

    @property
    def density(self) -> float:
        """Stored numbers over all."""
        return self.value.numel() / (self.shape[0] * self.shape[1])

    def dense(self) -> torch.Tensor:
        """Return the weight that the integers stand for, float32 (out, in)."""
        rows, columns = self.shape
        groups, quads = -(-rows // SIDE), -(-columns // SIDE)
        owner = torch.repeat_interleave(torch.arange(groups), (self.start[1:] - self.start[:-1]).long())
        full = torch.zeros(groups, quads, SIDE, SIDE)
        full[owner, self.column.long()] = self.value.float()
        flat = full.transpose(1, 2).reshape(groups * SIDE, quads * SIDE)[:rows, :columns]
        return flat * self.scale[:, None]


def pack_int8(weight: torch.Tensor) -> Int8Matrix:
    """Round a weight to 8-bit integers, symmetric, with a scale for each output row.

    Args:
        weight: (out, in), any floating dtype and device.

    Raises:
        InputError: no matrix, an empty one, or one with values that are not finite.
    """
    if weight.dim() != 2 or not weight.numel():
        raise InputError(f"pack_int8: the weight has to be a matrix with entries, not {tuple(weight.shape)}.")
    given = weight.detach().to("cpu", torch.float32)
    if not bool(given.isfinite().all()):
        raise InputError("pack_int8: the weight holds NaN or infinity, which no integer can stand for.")
    rows, columns = given.shape
    scale = given.abs().amax(1) / MOST
    # a row of zeros, or of denormals that would divide to infinity
    scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, 1.0)
    rounded = (given / scale[:, None]).round().clamp(-MOST, MOST).to(torch.int8)
    blocks = functional.pad(rounded, (0, -columns % SIDE, 0, -rows % SIDE))
    blocks = blocks.view(-(-rows // SIDE), SIDE, -(-columns // SIDE), SIDE).transpose(1, 2).contiguous()
    kept = (blocks != 0).flatten(2).any(-1)
    start = functional.pad(kept.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    column = kept.nonzero()[:, 1].to(torch.uint16).contiguous()
    return Int8Matrix((rows, columns), start, column, blocks[kept].contiguous(), scale, rounded.float().sum(1))


def quantised(x: torch.Tensor) -> torch.Tensor:
    """Return what the kernels make of activations: each token's features on 128 even steps from least to most.

    Args:
        x: float32 (..., in).
    """
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    step = (high - low) / STEPS
    return low + step * ((x - low) / torch.where(step > 0, step, 1.0)).round()


def int8_compute(
    x: torch.Tensor, matrix: Int8Matrix, bias: torch.Tensor | None, activation: str | None
) -> torch.Tensor:
    """Return act(q(x) W' + b), q as :func:`quantised`; densely in fp32 where there are no kernels. Checks nothing.

    Args:
        x: float32 (..., in) on the CPU, finite: NaN and infinity cannot be quantised.
        matrix: W.
        bias: float32 (out,) or None.
        activation: a key of ``ACTIVATIONS``.
    """
    from dsee.kernels.product import activate

    found = library()
    if found is None or not found.int8:
        return activate(functional.linear(quantised(x), matrix.dense(), bias), activation)
    x = x.contiguous()
    y = torch.empty((*x.shape[:-1], matrix.shape[0]))
    given = matrix.c()
    bias = None if bias is None else bias.contiguous()
    given.bias = None if bias is None else bias.data_ptr()
    given.x, given.y = x.data_ptr(), y.data_ptr()
    given.tokens, given.activation = y.numel() // matrix.shape[0], ACTIVATIONS[activation]
    found.int8_run(given, torch.get_num_threads())
    return y
