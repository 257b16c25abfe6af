"""``dsee.merge`` with ``policy="split"``: S2 goes into W where the mask keeps W, all else stays beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dsee.errors import OrderError
from dsee.masks import BUFFER, oriented, set_mask
from dsee.update.layer import DseeLayer, update_layers
from dsee.update.masked import keeps_to_mask
from dsee.update.side import SideBranch, with_side


def split(model: nn.Module, masks: dict[str, torch.Tensor]) -> list[str]:
    """Put linears with a branch in the place of sparse matrices and the active updates on them, in place.

    W + s S2 is exact on kept weights; s U V and the entries of S2 on zeros are dense or lie outside the mask, so they
    become the branch. An update that keeps to its mask merges as it is.

    Args:
        model: a model with updates.
        masks: path of each matrix in ``model`` -> what is kept, bool, (out, in).

    Returns:
        Paths of the linears that have a branch now.

    Raises:
        OrderError: a matrix has a branch already. Nothing has been changed then.
    """
    layers = {name: layer for name, layer in update_layers(model) if name in masks}
    for name, layer in layers.items():
        if isinstance(layer.get_base_layer(), SideBranch):
            raise OrderError(f"merge: {name} has a branch of an earlier split. Use policy='masked' or 'dense' here.")
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _split(layer, masks[name]))
    return sorted(layers)


@torch.no_grad()
def _split(layer: DseeLayer, mask: torch.Tensor) -> Any:
    base = layer.get_base_layer()
    weight = oriented(base)
    exact = torch.promote_types(weight.dtype, torch.float32)
    sums = torch.zeros(weight.shape, dtype=exact, device=weight.device)
    ups, lows = [], []
    for name in layer.active_adapters:
        if not layer.has_update(name):
            continue
        if keeps_to_mask(layer, name):
            delta = layer.get_delta_weight(name)
            sums += delta.T if layer.transposed else delta
            continue
        factors, sparse, scaling = layer.factors(name), layer.live_sparse(name), layer.dsee_scaling[name]
        if factors is not None:
            ups.append(factors[0] * scaling)
            lows.append(factors[1])
        if sparse is not None:
            sums.view(-1).index_add_(0, sparse[1].long(), (sparse[0] * scaling).to(exact))
    weight.copy_(weight.to(exact) + sums.masked_fill(~mask, 0.0))
    apart = sums.masked_fill_(mask, 0.0).view(-1)
    places = apart.nonzero().reshape(-1)
    low_rank = (torch.cat(ups, 1), torch.cat(lows)) if ups else None
    found = with_side(base, low_rank, (apart[places], places) if places.numel() else None)
    if BUFFER in base._buffers:
        set_mask(found, mask)
    return found
