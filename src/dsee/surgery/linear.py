"""Keeping chosen rows or columns of a linear, and of every update on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dsee.errors import ArchitectureError
from dsee.masks import get_mask, set_mask
from dsee.update.bases import is_quantised, linear_shape, refuse_recomputed
from dsee.update.fused import FusedUp, check_even
from dsee.update.layer import DseeLayer
from dsee.update.side import SideBranch
from dsee.update.sparse_delta import SparseDelta


def check_cuttable(linear: Any, key: str) -> None:
    """Make sure that :func:`select` can do its work on a linear.

    Args:
        linear: Linear or Conv1D, with or without updates.
        key: its place, for the message.

    Raises:
        ArchitectureError: the weight is of a kind that cannot be cut.
        InputError: the weight is recomputed at every call.
    """
    base: Any = linear.get_base_layer() if isinstance(linear, DseeLayer) else linear
    refuse_recomputed(base, key)
    if isinstance(base, SideBranch):
        raise ArchitectureError(
            f"{key}: it has a branch of a split merge, which a cut would not follow. Prune first, then merge."
        )
    if is_quantised(base) or (not isinstance(base, nn.Linear) and type(base).__name__ != "Conv1D"):
        raise ArchitectureError(
            f"{key}: a {type(base).__name__} cannot be cut: only plain Linear and Conv1D can. Load the model without "
            "quantisation, prune, merge, and quantise the result."
        )


def _replace(module: nn.Module, name: str, data: torch.Tensor) -> None:
    """Put a smaller tensor in a parameter's place; optimizers that know the old one have to be made afresh."""
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(data.clone().contiguous(), requires_grad=old.requires_grad))


def _select_base(base: Any, keep: torch.Tensor, dim: int) -> None:
    """Keep rows (dim 0) or columns (dim 1), in (out, in) orientation, of a bare linear."""
    keep = keep.to(base.weight.device)
    mask = get_mask(base)
    if isinstance(base, nn.Linear):
        _replace(base, "weight", base.weight.data.index_select(dim, keep))
        if dim == 0:
            base.out_features = keep.numel()
        else:
            base.in_features = keep.numel()
    else:
        _replace(base, "weight", base.weight.data.index_select(1 - dim, keep))
        setattr(base, "nf" if dim == 0 else "nx", keep.numel())
    if dim == 0 and base.bias is not None:
        _replace(base, "bias", base.bias.data[keep])
    if mask is not None:
        set_mask(base, mask.index_select(dim, keep))


def _reindexed(sparse: SparseDelta, keep: torch.Tensor, dim: int) -> SparseDelta | None:
    """S2 on the smaller matrix: entries in removed rows or columns go, the others get new positions."""
    sparse.check()
    sizes = [sparse.out_features, sparse.in_features]
    keep = keep.to(sparse.indices.device)
    new_place = torch.full((sizes[dim],), -1, dtype=torch.int64, device=keep.device)
    new_place[keep] = torch.arange(keep.numel(), device=keep.device)
    places = list(sparse.rows_and_columns())
    places[dim] = new_place[places[dim]]
    stays = places[dim] >= 0
    if not stays.any():
        return None
    sizes[dim] = keep.numel()
    # kept rows and columns are in ascending order, so the positions stay sorted and the values need no reordering
    smaller = SparseDelta((places[0] * sizes[1] + places[1])[stays], sizes[0], sizes[1])
    smaller.weight = nn.Parameter(sparse.weight.data[stays].clone(), requires_grad=sparse.weight.requires_grad)
    return smaller.to(sparse.weight.device)


def _select_updates(layer: DseeLayer, keep: torch.Tensor, dim: int) -> None:
    factors = layer.dsee_U if dim == 0 else layer.dsee_V
    for factor in factors.values():
        if isinstance(factor, FusedUp):
            rows = factor.kept_rows(keep.to(factor.weight.device))
            _replace(factor, "weight", factor.weight.data[rows])
            factor.out_features = keep.numel()
        else:
            _select_base(factor, keep, dim)
    for name in list(layer.dsee_S):
        smaller = _reindexed(layer.dsee_S[name], keep, dim)
        if smaller is None:
            del layer.dsee_S[name]
        else:
            layer.dsee_S[name] = smaller


def select(linear: Any, keep: torch.Tensor, dim: int) -> None:
    """Keep some outputs (dim 0) or inputs (dim 1) of a linear, W, U, V and S2 alike.

    Args:
        linear: Linear or Conv1D, with or without updates.
        keep: int64, ascending indices of what stays.
        dim: 0 for output rows, 1 for input columns, in (out, in) orientation.

    Raises:
        ArchitectureError: the weight is of a kind that cannot be cut.
        InputError: the weight is recomputed at every call.
    """
    check_cuttable(linear, "select")
    if isinstance(linear, DseeLayer):
        if dim == 0 and linear.dsee_parts:
            check_even(keep, linear_shape(linear.get_base_layer())[0])
        _select_base(linear.get_base_layer(), keep, dim)
        _select_updates(linear, keep, dim)
    else:
        _select_base(linear, keep, dim)
