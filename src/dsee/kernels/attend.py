"""Softmax attention by the kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
from torch.nn import functional

from dsee.errors import InputError
from dsee.kernels.library import library


class CAttention(ctypes.Structure):
    """``dsee_attention`` of dsee_kernels.h."""

    _fields_ = (
        *((name, c_void_p) for name in ("q", "k", "v", "out", "allowed", "bias")),
        *((name, c_int64) for name in ("batch", "heads", "kv_heads", "queries", "keys", "dim")),
        *((f"{name}_{step}", c_int64) for name in ("q", "k", "v", "out") for step in ("batch", "head", "token")),
        *((name, c_int64) for name in ("mask_batch", "mask_head", "mask_query")),
        ("scale", c_float),
        ("causal", c_int32),
    )


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
) -> torch.Tensor:
    """Return softmax(scale Q K' + mask) V for each head; no gradients.

    A key that a query may not see has a weight of exactly 0. A query that may see none gets zeros. Without the
    compiled kernels the same is computed by torch.

    Args:
        query: float32 (batch, heads, queries, dim) on the CPU.
        key: float32 (batch, kv heads, keys, dim); a group of heads shares each.
        value: like ``key``.
        mask: broadcastable to (batch, heads, queries, keys): bool, True where a key may be seen, or float32, added to
            the scores; None for neither.
        scale: of the scores.
        causal: query i sees keys 0 to i.

    Returns:
        float32 (batch, queries, heads, dim), contiguous.

    Raises:
        InputError: shapes, dtypes or devices that do not fit.
    """
    _check(query, key, value, mask)
    batch, heads, queries, dim = query.shape
    kv_heads, keys = key.shape[1:3]
    mask = spread(mask, batch, heads, queries, keys)
    found = library()
    if found is None or not keys:
        return _by_torch(query, key, value, mask, scale, causal)
    # features side by side, heads and tokens as far apart as they are
    query, key, value = (t if t.stride(-1) == 1 else t.contiguous() for t in (query, key, value))
    out = torch.empty(batch, queries, heads, dim)
    steps = [*query.stride()[:3], *key.stride()[:3], *value.stride()[:3]]
    sizes = [batch, heads, kv_heads, queries, keys, dim]
    places = [t.data_ptr() for t in (query, key, value)]
    given = described(places, out, mask, sizes, steps, scale, causal=causal)
    found.attend(given, torch.get_num_threads())
    return out


def spread(mask: torch.Tensor | None, *shape: int) -> torch.Tensor | None:
    """Return a mask seen in its full shape, with keys side by side.

    Args:
        mask: broadcastable to ``shape``, or None.
        *shape: batch, heads, queries, keys.
    """
    if mask is None:
        return None
    mask = mask.expand(*shape)
    return mask if mask.stride(-1) == 1 or shape[-1] <= 1 else mask.contiguous()


def described(
    places: Sequence[int | None],
    out: torch.Tensor,
    mask: torch.Tensor | None,
    sizes: list[int],
    steps: list[int],
    scale: float,
    *,
    causal: bool,
) -> CAttention:
    """Return the structure that the kernels take.

    Args:
        places: addresses of query, key and value.
        out: float32 (batch, queries, heads, dim), contiguous; has to outlive the structure, as the mask has to.
        mask: (batch, heads, queries, keys), bool or float32, keys side by side; or None.
        sizes: batch, heads, kv heads, queries, keys, dim.
        steps: of query, key and value: floats from one batch, head and token to the next.
        scale: of the scores.
        causal: query i sees keys 0 to i.
    """
    allowed, bias, mask_steps = None, None, [0, 0, 0]
    if mask is not None:
        mask_steps = [*mask.stride()[:3]]
        allowed, bias = (mask.data_ptr(), None) if mask.dtype == torch.bool else (None, mask.data_ptr())
    to = [out.stride(0), out.stride(2), out.stride(1)]
    return CAttention(*places, out.data_ptr(), allowed, bias, *sizes, *steps, *to, *mask_steps, scale, int(causal))


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or tensor.dim() != 4:
            raise InputError(f"attention: {name} has to be float32 (batch, heads, tokens, dim) on the CPU.")
    fits = key.shape == value.shape and key.shape[0] == query.shape[0] and key.shape[3] == query.shape[3]
    if not fits or not key.shape[1] or query.shape[1] % key.shape[1] or not query.shape[3]:
        raise InputError(
            f"attention: query {tuple(query.shape)}, key {tuple(key.shape)} and value {tuple(value.shape)} do not fit."
        )
    check_mask("attention", mask, (query.shape[0], query.shape[1], query.shape[2], key.shape[2]))


def check_mask(where: str, mask: torch.Tensor | None, wanted: tuple[int, int, int, int]) -> None:
    """Refuse a mask that does not fit.

    Args:
        where: begins the message.
        mask: the mask, or None.
        wanted: batch, heads, queries and keys.

    Raises:
        InputError: another dtype, device or shape.
    """
    if mask is None:
        return
    if mask.dtype not in (torch.bool, torch.float32) or mask.device.type != "cpu":
        raise InputError(f"{where}: the mask has to be bool or float32 on the CPU; {mask.dtype} does not fit.")
    if mask.dim() != 4 or any(have not in (1, want) for have, want in zip(mask.shape, wanted, strict=True)):
        raise InputError(f"{where}: a mask of {tuple(mask.shape)} does not fit {wanted}.")


def _by_torch(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float, causal: bool
) -> torch.Tensor:
    scores = scale * query @ key.repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(2, 3)
    lowest = float("-inf")
    if mask is not None:
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    if causal:
        queries, keys = scores.shape[-2:]
        scores = scores.masked_fill(~torch.ones(queries, keys, dtype=torch.bool).tril(), lowest)
    # a row of nothing but -inf has no softmax
    weights = functional.softmax(scores, -1).masked_fill((scores == lowest).all(-1, keepdim=True), 0.0)
    return (weights @ value.repeat_interleave(query.shape[1] // key.shape[1], 1)).transpose(1, 2).contiguous()
