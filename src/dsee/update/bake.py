"""Making masks permanent that live outside the weight: ``torch.nn.utils.prune`` and parametrizations."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from transformers.pytorch_utils import Conv1D

from dsee.masks import set_mask


def _prune_mask(linear: Any) -> torch.Tensor | None:
    """The mask that ``torch.nn.utils.prune`` keeps for the weight, True where it is kept, in (out, in) orientation."""
    mask = linear._buffers.get("weight_mask")
    if mask is None:
        return None
    kept: torch.Tensor = mask != 0
    return kept.T if isinstance(linear, Conv1D) else kept


def _bake(linear: Any) -> torch.Tensor | None:
    """Put the weight that the layer computes with in its place; return which weights are kept, None for all."""
    mask = _prune_mask(linear)
    if mask is not None:
        # values and mask meet here for the last time
        prune.remove(linear, "weight")
        return mask
    parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)
    kept: torch.Tensor = linear.weight.data != 0
    if bool(kept.all()):
        return None
    return kept.T if isinstance(linear, Conv1D) else kept


def bake_masks(model: nn.Module) -> list[str]:
    """Make pruning by ``torch.nn.utils.prune`` and parametrizations permanent, in place.

    Such a weight is computed anew at every call, so that a merged update or a cut would be lost. Afterwards it is an
    ordinary parameter with the same values, and its zeros are kept as a mask, as :class:`dsee.Weights` would keep them:
    merging with ``policy="masked"`` and recovering leave them zero. The model computes what it did before.

    Args:
        model: any model; Linear and Conv1D layers are looked at, inside PEFT's wrappers too. A bias pruned by
            ``torch.nn.utils.prune`` is made permanent too.

    Returns:
        Paths of the layers whose weight was baked in.
    """
    baked = []
    for name, linear in model.named_modules():
        if not isinstance(linear, (nn.Linear, Conv1D)):
            continue
        if "bias_mask" in linear._buffers:
            prune.remove(linear, "bias")
        if "weight_mask" in linear._buffers or parametrize.is_parametrized(linear, "weight"):
            learns = any(p.requires_grad for p in linear.parameters())
            mask = _bake(linear)
            linear.weight.requires_grad_(learns)
            if mask is not None:
                set_mask(linear, mask)
            baked.append(name)
    return baked
