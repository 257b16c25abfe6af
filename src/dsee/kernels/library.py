"""The compiled kernels, called through ctypes."""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_uint8
from functools import cache
from pathlib import Path
from typing import Any

from dsee.errors import InputError, nearest
from dsee.kernels.compile import LIBRARY

#: "off", or the instruction set to use in place of the best.
VARIABLE = "DSEE_KERNELS"
KINDS = {"blocks": 0, "weights": 1}
ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4}

#: A matrix, its bias or None, and its activation: two addresses and a number.
Layer = tuple[int, int | None, int]

#: What ``dsee_check`` answers.
FAULTS = {
    1: "its kind is neither blocks nor weights",
    2: "its chunks are not 1 to 256 columns wide",
    3: "its rows or columns are not 1 to 2^31 - 1",
    4: "its number of groups does not fit its rows",
    5: "its arrays are not as long as its shape and entries ask for",
    6: "its starts do not rise from 0 to the number of entries",
    7: "a column lies outside its chunk",
}


class CMatrix(ctypes.Structure):
    """``dsee_matrix`` of dsee_kernels.h."""

    _fields_ = (
        ("kind", c_int32),
        ("chunk", c_int32),
        ("rows", c_int64),
        ("columns", c_int64),
        ("groups", c_int64),
        ("start", POINTER(c_int32)),
        ("column", POINTER(c_uint8)),
        ("value", POINTER(c_float)),
    )


class CProduct(ctypes.Structure):
    """``dsee_product`` of dsee_kernels.h."""

    _fields_ = (
        ("w", POINTER(CMatrix)),
        ("v", POINTER(CMatrix)),
        ("u", POINTER(c_float)),
        ("bias", POINTER(c_float)),
        ("x", POINTER(c_float)),
        ("y", POINTER(c_float)),
        ("tokens", c_int64),
        ("ldx", c_int64),
        ("ldy", c_int64),
        ("activation", c_int32),
    )


class Library:
    """The loaded library.

    Attributes:
        paths: instruction sets that this machine can run, best last.
        path: the one in use.
        panels: kind -> tokens of a full panel.
        int8: whether the one in use has 8-bit products.
    """

    def __init__(self, file: Path, wanted: str) -> None:
        loaded = ctypes.CDLL(str(file))
        loaded.dsee_paths.argtypes = [POINTER(c_char_p), c_int32]
        loaded.dsee_panel.argtypes = [c_char_p, c_int32]
        loaded.dsee_check.argtypes = [POINTER(CMatrix), c_int64, c_int64, c_int64]
        loaded.dsee_run.argtypes = [POINTER(CProduct), c_char_p, c_int32]
        address = ctypes.c_void_p
        loaded.dsee_linear.argtypes = [address, address, address, address, c_int64, c_int32, c_char_p, c_int32]
        loaded.dsee_attend.argtypes = [address, c_char_p, c_int32]
        loaded.dsee_self_attend.argtypes = [address, c_char_p, c_int32]
        loaded.dsee_encode.argtypes = [address, c_char_p, c_int32]
        loaded.dsee_encoder_room.argtypes = [c_int32, c_int64, c_int64, c_int64, c_char_p]
        loaded.dsee_encoder_room.restype = c_int64
        loaded.dsee_int8_run.argtypes = [address, c_char_p, c_int32]
        loaded.dsee_int8_check.argtypes = [address, c_int64, c_int64, c_int64]
        loaded.dsee_int8_can.argtypes = [c_char_p]
        loaded.dsee_share_threads.argtypes = [address]
        loaded.dsee_share_threads.restype = None
        layer: list[Any] = [address, address, c_int32]
        loaded.dsee_linears.argtypes = [*layer, *layer, address, address, c_int64, c_char_p, c_int32]
        loaded.dsee_add_norm.argtypes = [*[address] * 5, c_int64, c_int64, c_float, c_char_p, c_int32]
        self._loaded, self._linear = loaded, loaded.dsee_linear
        self.share_threads(torch_threads_address())
        names = (c_char_p * 8)()
        count = loaded.dsee_paths(names, 8)
        self.paths = [str((names[i] or b"").decode()) for i in range(count)]
        if wanted and wanted not in self.paths:
            raise InputError(
                f"{VARIABLE}={wanted} names no instruction set of this machine.{nearest(wanted, self.paths)} "
                f"Use one of {', '.join(self.paths)}, or off."
            )
        self.use(wanted or self.paths[-1])

    def share_threads(self, parallel: int | None) -> None:
        """Compute on the threads of an OpenMP runtime, or on a few of the kernels' own.

        Args:
            parallel: address of its ``GOMP_parallel``; None for own threads.
        """
        self._loaded.dsee_share_threads(parallel)

    def use(self, path: str) -> None:
        """Go on with another instruction set.

        Args:
            path: one of ``paths``.
        """
        self.path = path
        self._name = path.encode()
        self.int8 = bool(self._loaded.dsee_int8_can(self._name))
        self.panels = {kind: int(self._loaded.dsee_panel(self._name, number)) for kind, number in KINDS.items()}

    def fault(self, matrix: CMatrix, starts: int, entries: int, values: int) -> str:
        """Why a kernel could read outside a matrix's arrays, or "".

        Args:
            matrix: the matrix.
            starts: length of ``start``.
            entries: length of ``column``.
            values: length of ``value``.
        """
        code = self._loaded.dsee_check(ctypes.byref(matrix), starts, entries, values)
        return FAULTS.get(code, "") if code else ""

    def run(self, product: CProduct, threads: int) -> None:
        """Compute a product whose matrices are sound. Lets other Python threads run meanwhile.

        Args:
            product: what to compute.
            threads: how many threads may share it.

        Raises:
            MemoryError: no memory for the panels.
        """
        if self._loaded.dsee_run(ctypes.byref(product), self._name, threads):
            raise MemoryError("dsee.kernels: no memory for a panel of activations.")

    def linear(self, matrix: int, bias: int | None, x: int, y: int, tokens: int, activation: int, threads: int) -> None:
        """Compute a product without a side branch, everything given by its address.

        Args:
            matrix: of a sound ``dsee_matrix``.
            bias: of float32 (rows,), or None.
            x: of float32 (tokens, columns).
            y: of float32 (tokens, rows).
            tokens: how many.
            activation: a value of ``ACTIVATIONS``.
            threads: how many threads may share it.

        Raises:
            MemoryError: no memory for the panels.
        """
        if self._linear(matrix, bias, x, y, tokens, activation, self._name, threads):
            raise MemoryError("dsee.kernels: no memory for a panel of activations.")

    def linears(self, first: Layer, second: Layer, x: int, y: int, tokens: int, threads: int) -> None:
        """Compute two products in a row, the second's columns the first's rows, both of one kind.

        Args:
            first: addresses of a sound ``dsee_matrix`` and of its bias or None, and a value of ``ACTIVATIONS``.
            second: the same.
            x: address of float32 (tokens, first's columns).
            y: address of float32 (tokens, second's rows).
            tokens: how many.
            threads: how many threads may share it.

        Raises:
            MemoryError: no memory for the panels.
        """
        if self._loaded.dsee_linears(*first, *second, x, y, tokens, self._name, threads):
            raise MemoryError("dsee.kernels: no memory for a panel of activations.")

    def add_norm(
        self, a: int, b: int, gain: int, shift: int, y: int, tokens: int, width: int, eps: float, threads: int
    ) -> None:
        """Compute the layer norm of a sum, everything given by its address.

        Args:
            a: of float32 (tokens, width).
            b: like ``a``.
            gain: of float32 (width,).
            shift: like ``gain``.
            y: of float32 (tokens, width); may be ``a`` or ``b``.
            tokens: how many.
            width: features of a token.
            eps: added to the variance.
            threads: how many threads may share it.
        """
        self._loaded.dsee_add_norm(a, b, gain, shift, y, tokens, width, eps, self._name, threads)

    def attend(self, attention: ctypes.Structure, threads: int) -> None:
        """Compute attention whose tensors fit each other.

        Args:
            attention: a ``dsee_attention``.
            threads: how many threads may share it.

        Raises:
            MemoryError: no memory for a head's keys and values.
        """
        if self._loaded.dsee_attend(ctypes.addressof(attention), self._name, threads):
            raise MemoryError("dsee.kernels: no memory for the keys and values of a head.")

    def self_attend(self, attention: ctypes.Structure, threads: int) -> None:
        """Compute self-attention whose parts fit each other.

        Args:
            attention: a ``dsee_self``.
            threads: how many threads may share it.

        Raises:
            MemoryError: no memory for the queries, keys and values of some heads.
        """
        if self._loaded.dsee_self_attend(ctypes.addressof(attention), self._name, threads):
            raise MemoryError("dsee.kernels: no memory for the queries, keys and values of some heads.")

    def encoder_room(self, kind: str, batch: int, tokens: int, width: int) -> int:
        """Numbers that the hidden states of an encoder take.

        Args:
            kind: a key of ``KINDS``.
            batch: sequences.
            tokens: of each.
            width: features of a token.
        """
        return int(self._loaded.dsee_encoder_room(KINDS[kind], batch, tokens, width, self._name))

    def encode(self, encoder: ctypes.Structure, threads: int) -> None:
        """Compute an encoder whose parts fit each other.

        Args:
            encoder: a ``dsee_encoder``.
            threads: how many threads may share it.

        Raises:
            InputError: its parts do not fit each other.
            MemoryError: no memory for a panel.
        """
        failed = self._loaded.dsee_encode(ctypes.addressof(encoder), self._name, threads)
        if failed == 3:
            raise InputError("Encoder: the layers do not fit each other.")
        if failed:
            raise MemoryError("dsee.kernels: no memory for a panel of activations.")

    def int8_fault(self, matrix: ctypes.Structure, starts: int, blocks: int, values: int) -> int:
        """A key of ``FAULTS`` if a product could read outside an 8-bit matrix's arrays, else 0.

        Args:
            matrix: a ``dsee_int8``.
            starts: length of ``start``.
            blocks: length of ``column``.
            values: length of ``value``.
        """
        return int(self._loaded.dsee_int8_check(ctypes.addressof(matrix), starts, blocks, values))

    def int8_run(self, product: ctypes.Structure, threads: int) -> None:
        """Compute a product of 8-bit integers whose matrix is sound, on a path that has them.

        Args:
            product: a ``dsee_int8``.
            threads: how many threads may share it.

        Raises:
            MemoryError: no memory for a panel.
        """
        if self._loaded.dsee_int8_run(ctypes.addressof(product), self._name, threads):
            raise MemoryError("dsee.kernels: no memory for a panel of activations.")


def torch_threads_address() -> int | None:
    """Address of ``GOMP_parallel`` in the OpenMP runtime that torch brings on Linux, or None where there is none."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError):
        return None


@cache
def _found() -> tuple[Library | None, str]:
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "off":
        return None, f"they are switched off by {VARIABLE}=off"
    file = Path(__file__).parent / LIBRARY
    if not file.is_file():
        return None, "they were not compiled when dsee was installed, for want of a working C compiler"
    try:
        return Library(file, wanted), ""
    except OSError as error:
        return None, f"{file.name} cannot be loaded: {error}"


def library() -> Library | None:
    """Return the kernels, or None where there are none; :func:`why_not` says why."""
    return _found()[0]


def why_not() -> str:
    """Why there are no kernels; "" where there are."""
    return _found()[1]
