"""One sparse matrix in few bytes: which weights are kept as bits, and the values of those alone.

| kind | bits | at 50 % zeros, of fp32 |
| --- | --- | --- |
| bitmask | one for each weight | 0.531 |
| blocks | one for each block | 0.508 for 4 x 1 |
| 2:4 | two kept of each four along the input, two bits for the place of each | 0.531 |

Everything is in (out, in) orientation, row by row, and the first bit is the lowest of the first byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dsee.errors import ArtifactError, InputError
from dsee.masks import pack, unpack
from dsee.pruning.blocks import block_grid, block_sizes, block_sums, spread

KINDS = ("bitmask", "blocks", "2:4")
#: What a matrix's entries in two headers take, at most; a saving below is none.
OVERHEAD = 512


@dataclass(frozen=True)
class Encoding:
    """How a matrix is stored.

    Attributes:
        kind: one of ``KINDS``.
        shape: (out, in).
        transposed: whether the tensor itself is (in, out), as Conv1D's is.
        mask: whether the bits are the matrix's mask; else they say where it is not zero.
        block: output rows x input columns of a block, for "blocks".
    """

    kind: str
    shape: tuple[int, int]
    transposed: bool = False
    mask: bool = False
    block: tuple[int, int] | None = None

    def facts(self) -> dict[str, Any]:
        """Return plain data; :func:`parse` is the way back."""
        found = {"kind": self.kind, "shape": list(self.shape), "transposed": self.transposed, "mask": self.mask}
        return found | ({"block": list(self.block)} if self.block else {})

    @property
    def weights(self) -> int:
        """All weights of the matrix."""
        return self.shape[0] * self.shape[1]

    def bit_bytes(self) -> int:
        """Bytes of the bits."""
        if self.kind == "2:4":
            return -(-self.weights // 8)
        grid = self.shape if self.block is None else block_grid(self.shape, self.block)
        return -(-grid[0] * grid[1] // 8)


def parse(facts: Any) -> Encoding:
    """Read what :meth:`Encoding.facts` wrote.

    Args:
        facts: from a file, so anything.

    Raises:
        ArtifactError: it describes no matrix.
    """
    ask: Any = facts if isinstance(facts, dict) else {}
    kind, shape, block = ask.get("kind"), _sizes(ask.get("shape")), _sizes(ask.get("block"))
    flags = [ask.get("transposed"), ask.get("mask")]
    known = {"kind", "shape", "transposed", "mask"} | ({"block"} if kind == "blocks" else set())
    fits = kind in KINDS and set(ask) == known and shape is not None and all(type(flag) is bool for flag in flags)
    if not fits or (kind == "blocks") != (block is not None) or (kind == "2:4" and shape is not None and shape[1] % 4):
        raise ArtifactError(f"{str(facts)[:200]} does not say how a matrix is stored.")
    return Encoding(str(kind), shape, bool(flags[0]), bool(flags[1]), block)  # type: ignore[arg-type]  # not None: fits


def _sizes(value: Any) -> tuple[int, int] | None:
    if isinstance(value, list) and len(value) == 2 and all(type(n) is int and 0 < n < 2**31 for n in value):
        return value[0], value[1]
    return None


def encode(
    weight: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    transposed: bool = False,
    blocks: tuple[tuple[int, int], ...] = (),
) -> tuple[Encoding, torch.Tensor, torch.Tensor] | None:
    """Store a matrix in the fewest bytes, or return None if that is as it is.

    Args:
        weight: (out, in).
        mask: bool, (out, in), True where a weight is kept, zero or not; None for a matrix without a mask.
        transposed: whether the tensor it comes from is (in, out).
        blocks: shapes of blocks to try.

    Returns:
        How, the bits (uint8) and the values (of weight's dtype); or None.
    """
    # minus zero is a value
    kept = (weight != 0) | torch.signbit(weight) if mask is None else mask
    rows, columns = weight.shape
    made = Encoding("bitmask", (rows, columns), transposed, mask is not None)
    choices = [made]
    if columns % 4 == 0 and bool((kept.view(rows, -1, 4).sum(2) == 2).all()):
        choices.append(Encoding("2:4", made.shape, transposed, made.mask))
    for block in blocks:
        sums = block_sums(kept.to(torch.int32), block)
        full = block_sizes(made.shape, block)
        if bool(((sums == 0) | (sums == (block[0] * block[1] if full is None else full))).all()):
            choices.append(Encoding("blocks", made.shape, transposed, made.mask, block))
    # of equals the one that says most
    best = min(reversed(choices), key=Encoding.bit_bytes)
    values = weight[kept]
    size = weight.element_size()
    if best.bit_bytes() + values.numel() * size + OVERHEAD >= weight.numel() * size:
        return None
    return best, _bits(best, kept), values


def _bits(encoding: Encoding, kept: torch.Tensor) -> torch.Tensor:
    if encoding.kind == "2:4":
        # the places of the two in each four, lowest first
        places = kept.view(-1, 4).nonzero()[:, 1].to(torch.uint8)
        return pack(torch.stack([places & 1, places >> 1], 1).bool())
    if encoding.block is not None:
        return pack(block_sums(kept.to(torch.int32), encoding.block) > 0)
    return pack(kept)


def kept_of(encoding: Encoding, bits: torch.Tensor) -> torch.Tensor:
    """Return which weights have a value, bool, (out, in).

    Args:
        encoding: how the matrix is stored.
        bits: its bits.

    Raises:
        ArtifactError: the bits do not belong to such a matrix.
    """
    if bits.dtype != torch.uint8 or bits.shape != (encoding.bit_bytes(),):
        raise ArtifactError(
            f"its bits are {tuple(bits.shape)} of {bits.dtype}, where {encoding.bit_bytes()} bytes are due"
        )
    try:
        return _kept(encoding, bits)
    except InputError as error:
        raise ArtifactError(str(error)) from error


def _kept(encoding: Encoding, bits: torch.Tensor) -> torch.Tensor:
    rows, columns = encoding.shape
    if encoding.kind == "2:4":
        pairs = unpack(bits, (encoding.weights // 2, 2)).to(torch.uint8)
        places = (pairs[:, 0] + 2 * pairs[:, 1]).to(torch.int64).view(-1, 2)
        if bool((places[:, 0] >= places[:, 1]).any()):
            raise ArtifactError("two values of a group have the same place, or stand in the wrong order")
        return torch.zeros(encoding.weights // 4, 4, dtype=torch.bool).scatter_(1, places, True).view(rows, columns)
    if encoding.block is not None:
        return spread(unpack(bits, block_grid(encoding.shape, encoding.block)), encoding.shape, encoding.block)
    return unpack(bits, encoding.shape)


def decode(encoding: Encoding, bits: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Undo :func:`encode`.

    Args:
        encoding: how the matrix is stored.
        bits: its bits.
        values: its kept weights, row by row.

    Returns:
        The tensor as the model has it, (in, out) if ``transposed``, and which weights have a value, (out, in).

    Raises:
        ArtifactError: bits and values do not belong together, or not to such a matrix.
    """
    kept = kept_of(encoding, bits)
    count = int(kept.sum())
    if values.dim() != 1 or values.numel() != count or not values.is_floating_point():
        raise ArtifactError(f"its bits ask for {count} values; there are {tuple(values.shape)} of {values.dtype}")
    weight = values.new_zeros(encoding.shape)
    weight[kept] = values
    return (weight.T.contiguous() if encoding.transposed else weight), kept
