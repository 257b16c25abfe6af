"""The layer norm of a sum, as it ends both halves of a BERT layer, in one pass."""

from __future__ import annotations

import torch
from torch.nn import functional

from dsee.errors import InputError
from dsee.kernels.library import library


def add_norm(
    a: torch.Tensor,
    b: torch.Tensor,
    gain: torch.Tensor,
    shift: torch.Tensor,
    eps: float,
    *,
    into_a: bool = False,
) -> torch.Tensor:
    """Return gain (s - mean(s)) / sqrt(var(s) + eps) + shift over the last dimension of s = a + b; no gradients.

    Args:
        a: float32 (..., width) on the CPU.
        b: like ``a``.
        gain: float32 (width,).
        shift: float32 (width,).
        eps: added to the variance.
        into_a: the result may take the place of ``a``.

    Returns:
        float32 (..., width).

    Raises:
        InputError: shapes, dtypes or devices that do not fit.
    """
    width = a.shape[-1] if a.dim() else 0
    for name, tensor, shape in (("b", b, a.shape), ("gain", gain, (width,)), ("shift", shift, (width,))):
        if tensor.shape != shape or not tensor.is_cpu or tensor.dtype != torch.float32:
            raise InputError(f"add_norm: {name} has to be float32 {tuple(shape)} on the CPU.")
    if not width or not a.is_cpu or a.dtype != torch.float32:
        raise InputError("add_norm: a has to be float32 (..., width) on the CPU.")
    found = library()
    if found is None:
        return functional.layer_norm(a + b, (width,), gain, shift, eps)
    a, b, gain, shift = a.contiguous(), b.contiguous(), gain.contiguous(), shift.contiguous()
    y = a if into_a else torch.empty_like(a)
    places = (a.data_ptr(), b.data_ptr(), gain.data_ptr(), shift.data_ptr(), y.data_ptr())
    found.add_norm(*places, a.numel() // width, width, eps, torch.get_num_threads())
    return y
