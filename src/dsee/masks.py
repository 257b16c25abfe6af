"""Masks of single weights (S1): where they are kept, and how a weight is held to its mask.

A mask belongs to the base, not to an adapter, so it sits on the bare linear: one bit per weight in a buffer that is not
persistent, because PEFT would write a persistent one into every adapter's file. The zeros themselves are written into
the weight, so a model runs the same with and without this package; the bits are there because a kept weight may happen
to be zero, and because merging has to know.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from dsee.errors import InputError

#: Name of the buffer of packed bits, and of the attribute that says how many weights it covers as (out, in).
BUFFER = "dsee_mask"


def bare(linear: Any) -> Any:
    """Return the linear itself, without an update around it.

    Args:
        linear: Linear or Conv1D, with or without updates.
    """
    return linear.get_base_layer() if hasattr(linear, "get_base_layer") else linear


def oriented(linear: Any) -> torch.Tensor:
    """Return the weight of a linear as (out, in), a view that can be written to.

    Args:
        linear: Linear or Conv1D, with or without updates.
    """
    base = bare(linear)
    weight: torch.Tensor = base.weight.data
    return weight.T if isinstance(base, Conv1D) else weight


def pack(mask: torch.Tensor) -> torch.Tensor:
    """Pack a mask to one bit per weight, first weight in the lowest bit.

    Args:
        mask: bool, any shape.

    Returns:
        uint8, shape (ceil(weights / 8),).
    """
    flat = mask.reshape(-1).to(torch.uint8)
    flat = nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    return (flat * powers).sum(1, dtype=torch.uint8)


def unpack(bits: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Undo :func:`pack`.

    Args:
        bits: uint8, shape (ceil(out x in / 8),).
        shape: (out, in).

    Returns:
        bool, shape (out, in).

    Raises:
        InputError: too many or too few bits for that shape.
    """
    count = shape[0] * shape[1]
    if bits.shape != (-(-count // 8),):
        raise InputError(f"A mask of {shape[0]} x {shape[1]} has {-(-count // 8)} bytes, not {tuple(bits.shape)}.")
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    flat = (bits[:, None] >> shifts) & 1
    return flat.reshape(-1)[:count].view(shape).bool()


def get_mask(linear: Any) -> torch.Tensor | None:
    """Return a linear's mask, True where a weight is kept, or None where it has none.

    Args:
        linear: Linear or Conv1D, with or without updates.

    Returns:
        bool, shape (out, in), also for Conv1D.
    """
    bits = getattr(bare(linear), BUFFER, None)
    rows, columns = oriented(linear).shape
    return None if bits is None else unpack(bits, (rows, columns))


@torch.no_grad()
def set_mask(linear: Any, mask: torch.Tensor | None) -> None:
    """Give a linear a mask, in place of any it has, and write the zeros into its weight.

    Args:
        linear: Linear or Conv1D, with or without updates.
        mask: bool, shape (out, in), True where a weight is kept; None forgets the mask and leaves the zeros.

    Raises:
        InputError: the shape does not fit.
    """
    base, weight = bare(linear), oriented(linear)
    if mask is None:
        base._buffers.pop(BUFFER, None)
        base._non_persistent_buffers_set.discard(BUFFER)
        return
    if mask.shape != weight.shape:
        raise InputError(f"A mask of shape {tuple(mask.shape)} does not fit a weight of shape {tuple(weight.shape)}.")
    mask = mask.to(weight.device)
    # not a product: zero times infinity would be NaN, and times a negative number minus zero
    weight.masked_fill_(~mask, 0.0)
    base.register_buffer(BUFFER, pack(mask), persistent=False)


def masked_linears(model: nn.Module) -> dict[str, Any]:
    """Return the bare linears that have a mask, by their path in the model.

    Args:
        model: any model.
    """
    return {name: module for name, module in model.named_modules() if BUFFER in module._buffers}


def hold(model: nn.Module) -> None:
    """Write every mask's zeros again, after an optimizer has moved the weights.

    Args:
        model: any model.
    """
    for linear in masked_linears(model).values():
        mask = get_mask(linear)
        if mask is not None:
            oriented(linear).masked_fill_(~mask, 0.0)
