"""An update that keeps to the base's mask all along: y = x (W S1 + S1 s (U V + S2))^T.

A masked merge drops the part of dW that lies on zeros. Dropping it while tuning too makes that merge exact. U V under a
mask is no low-rank product any more, so dW is written out for the length of a call, W + dW is multiplied by in one
product, and the backward pass makes the dense gradient g^T x once, of which U, V and S2 read their share:

    G = S1 (g^T x),   dL/dU = s G V^T,   dL/dV = s U^T G,   dL/dS2 = s G at the support.

That is one product of W's own size more than an unmasked update needs, three instead of two, for each matrix that has a
mask. Nothing dense outlives the call. Where there is no mask (yet), the update runs as any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from dsee.masks import BUFFER, bare, get_mask, oriented, unpack
from dsee.update.bases import is_quantised, linear_shape
from dsee.update.folded import FULL_PRECISION, is_plain_product

if TYPE_CHECKING:
    from dsee.update.layer import DseeLayer

#: A pre-trained matrix has no zeros to speak of; from this share on they are taken for a mask.
MASK_FROM = 0.01


def keeps_to_mask(layer: DseeLayer, adapter: str) -> bool:
    """Whether an adapter's update on this layer is held to a mask now.

    Args:
        layer: a layer with updates.
        adapter: the adapter's name.
    """
    return layer.dsee_masked.get(adapter, False) and BUFFER in layer.get_base_layer()._buffers


def sparse_masks(layers: list[tuple[str, DseeLayer]]) -> dict[str, torch.Tensor]:
    """Return what is kept, (out, in), of every sparse matrix that carries an update.

    A mask that is stored counts as it is; a matrix without one, of a base that came with zeros, by its zeros.

    Args:
        layers: as from :func:`dsee.update.layer.update_layers`.
    """
    stored: dict[str, torch.Tensor] = {}
    found: dict[str, torch.Tensor] = {}
    for name, layer in layers:
        base = layer.get_base_layer()
        if is_quantised(base) or base.weight.is_meta or isinstance(base, nn.Embedding):
            # what rounds to zero is no mask, a weight that is not there has none, and a padding row was not pruned
            continue
        mask = get_mask(layer)
        (found if mask is None else stored)[name] = oriented(layer) != 0 if mask is None else mask
    zeros = {name: 1.0 - mask.float().mean().item() for name, mask in found.items()}
    # one threshold for a whole model leaves some matrices with very few zeros, and those count too
    if all(share < MASK_FROM for share in zeros.values()):
        return stored
    return stored | {name: mask for name, mask in found.items() if zeros[name]}


def written_out(
    shape: tuple[int, int],
    factors: tuple[torch.Tensor, torch.Tensor] | None,
    sparse: tuple[torch.Tensor, torch.Tensor] | None,
    scaling: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return dW = s (U V + S2), under a mask if there is one; every caller rounds alike.

    Args:
        shape: (out, in).
        factors: U (out, k) and V (k, in), or None.
        sparse: S2's N values and their flat positions, or None.
        scaling: s.
        mask: bool, (out, in), True where a weight is kept.

    Returns:
        (out, in), in the update's dtype.
    """
    if factors is not None:
        # autocast would round dW, which is to be added to W
        with torch.autocast(factors[0].device.type, enabled=False):
            delta = factors[0] @ factors[1]
    else:
        assert sparse is not None  # noqa: S101 - an update has one of the two
        delta = sparse[0].new_zeros(shape)
    if sparse is not None:
        delta.view(-1).index_add_(0, sparse[1].to(torch.int64), sparse[0].to(delta.dtype))
    delta.mul_(scaling)
    return delta if mask is None else delta.masked_fill_(~mask, 0.0)


def shifted(weight: torch.Tensor, delta: torch.Tensor, sign: int = 1) -> torch.Tensor:
    """Return W + sign dW in W's dtype, summed in full precision.

    Args:
        weight: W.
        delta: dW, of the same shape.
        sign: 1 or -1.
    """
    exact = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(exact) + sign * delta.to(exact)).to(weight.dtype)


def _multiply(x: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None, transposed: bool) -> torch.Tensor:
    """What Linear, or Conv1D, does with a weight (out, in), to the bit."""
    if not transposed:
        return nn.functional.linear(x, matrix, bias)
    rows, native = x.reshape(-1, x.shape[-1]), matrix.T.contiguous()
    y = rows @ native if bias is None else torch.addmm(bias, rows, native)
    return y.view(*x.shape[:-1], matrix.shape[0])


def _effective(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    factors: tuple[torch.Tensor, torch.Tensor] | None,
    sparse: tuple[torch.Tensor, torch.Tensor] | None,
    bits: torch.Tensor,
    scaling: float,
    shape: tuple[int, int],
) -> torch.Tensor:
    """W + dW, or dW alone, in the dtype to multiply in."""
    delta = written_out(shape, factors, sparse, scaling, unpack(bits, shape))
    return delta.to(x.dtype) if weight is None else shifted(weight, delta)


class _MaskedProduct(torch.autograd.Function):
    """Saves x and the update's own tensors; dW is written out afresh for the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        up: torch.Tensor | None,
        low: torch.Tensor | None,
        values: torch.Tensor | None,
        indices: torch.Tensor | None,
        bits: torch.Tensor,
        fixed: tuple[float, tuple[int, int], bool],
    ) -> torch.Tensor:
        scaling, shape, transposed = fixed
        matrix = _effective(x, weight, _pair(up, low), _pair(values, indices), bits, scaling, shape)
        ctx.fixed = fixed
        ctx.save_for_backward(x, weight, up, low, values, indices, bits)
        return _multiply(x, matrix, bias, transposed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, up, low, values, indices, bits = ctx.saved_tensors
        scaling, shape, _ = ctx.fixed
        needs_x, _, needs_bias, needs_up, needs_low, needs_values, *_ = ctx.needs_input_grad
        grad = grad.to(x.dtype)
        flat = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_up = grad_low = grad_values = None
        if needs_x:
            grad_x = grad @ _effective(x, weight, _pair(up, low), _pair(values, indices), bits, scaling, shape)
        if needs_up or needs_low or needs_values:
            like = values if up is None else up
            dense = (flat.T @ x.reshape(-1, x.shape[-1])).to(like.dtype)
            dense.masked_fill_(~unpack(bits, shape), 0.0).mul_(scaling)
            grad_up = dense @ low.T if needs_up else None
            grad_low = up.T @ dense if needs_low else None
            grad_values = dense.view(-1)[indices.to(torch.int64)] if needs_values else None
        return grad_x, None, flat.sum(0) if needs_bias else None, grad_up, grad_low, grad_values, None, None, None


def _pair(one: torch.Tensor | None, other: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    return None if one is None or other is None else (one, other)


def _run(layer: DseeLayer, x: torch.Tensor, adapter: str, base: Any) -> torch.Tensor:
    """The product with dW, or with W + dW where a base is given."""
    factors, sparse = layer.live_factors(adapter), layer.live_sparse(adapter)
    up, low = factors or (None, None)
    values, indices = sparse or (None, None)
    weight = None if base is None else oriented(base)
    bias = None if base is None else base.bias
    bits = getattr(bare(layer), BUFFER)
    shape = linear_shape(layer.get_base_layer())
    # without W it is no product of the base's own, so that its layout does not matter
    fixed = (layer.dsee_scaling[adapter], shape, base is not None and layer.transposed)
    result: torch.Tensor = _MaskedProduct.apply(x, weight, bias, up, low, values, indices, bits, fixed)
    return result


def masked_product(layer: DseeLayer, x: torch.Tensor, adapter: str) -> torch.Tensor:
    """Return x (S1 s (U V + S2))^T.

    Args:
        layer: a layer for which :func:`keeps_to_mask` holds.
        x: (..., in).
        adapter: the adapter's name.

    Returns:
        (..., out), in x's dtype.
    """
    kind = x.device.type
    return _run(layer, x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x, adapter, None)


def can_merge_on_the_fly(layer: Any, x: torch.Tensor, adapter: str) -> bool:
    """Whether W + dW may be multiplied by in place of W: the numbers are then those of the merged model, to the bit.

    In half precision only where nothing is learned: W + dW would round a small dW away, as a merge does.

    Args:
        layer: a layer for which :func:`keeps_to_mask` holds.
        x: its input.
        adapter: the adapter's name.
    """
    dropped = layer.training and isinstance(layer.dsee_dropout[adapter], nn.Dropout)
    exact = x.dtype in FULL_PRECISION or not (layer.training or torch.is_grad_enabled())
    return exact and not dropped and is_plain_product(layer.base_layer, x)


def product_with_merged(layer: Any, x: torch.Tensor, adapter: str) -> torch.Tensor:
    """Return x (W + S1 s (U V + S2))^T + b by one matrix product.

    Args:
        layer: a layer for which :func:`can_merge_on_the_fly` holds.
        x: (..., in).
        adapter: the adapter's name.

    Returns:
        (..., out).
    """
    return _run(layer, x, adapter, layer.base_layer)
