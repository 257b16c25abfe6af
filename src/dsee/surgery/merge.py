"""Merging the update into the weights, with a stated policy about zeros."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from dsee.errors import ArtifactError, InputError, OrderError, nearest
from dsee.kernels.linear import refuse_on_kernels
from dsee.masks import get_mask, oriented, set_mask
from dsee.steps import record
from dsee.surgery.gates import fold_present
from dsee.update.bases import check_writable, is_quantised
from dsee.update.layer import any_merged, update_layers

Policy = Literal["masked", "dense", "error"]
POLICIES: tuple[str, ...] = ("masked", "dense", "error")

#: A pre-trained matrix has no zeros to speak of; from this share on they are taken for a mask.
MASK_FROM = 0.01


def merge(model: Any, policy: Policy = "masked") -> Any:
    """Return a plain transformers model with the active update merged into its weights.

    Removed heads and neurons commute with merging, so there the merge is exact. A base with zeros is another matter:
    dW is dense, and adding it would wipe them out. What counts as a zero is the mask of :func:`dsee.prune` where there
    is one, else, in a base that came with at least 1 % zeros, the zeros themselves. Gates, if there are any,
    are folded into the weights.

    Args:
        model: a PeftModel with a DSEE update. Its base is changed in place and returned, as by ``merge_and_unload``.
        policy: "masked" keeps every zero of a sparse matrix and warns of the part of dW it drops there; "dense" is
            exact and warns of the zeros it destroys; "error" refuses to merge into a sparse matrix.

    Returns:
        The transformers model, without PEFT.

    Raises:
        OrderError: nothing to merge, or ``policy="error"`` and a matrix is sparse.
        InputError: an unknown policy.
    """
    if policy not in POLICIES:
        raise InputError(f"policy={policy!r} is unknown.{nearest(policy, POLICIES)} Use one of {', '.join(POLICIES)}.")
    if not isinstance(model, nn.Module) or not update_layers(model):
        raise OrderError("merge: this model carries no DSEE update. Tune one first, or save the model as it is.")
    if not hasattr(model, "merge_and_unload"):
        raise InputError("merge: give a PeftModel, as get_peft_model and PeftModel.from_pretrained return it.")
    refuse_on_kernels(model, "merge")
    if any_merged(model):
        raise OrderError("merge: an update is merged already. Call unmerge_adapter() first.")
    _check_mergeable(model)
    masks = _masks(model)
    if masks and policy == "error":
        raise OrderError(
            f"merge: {len(masks)} matrices hold zeros that merging would destroy (first: {next(iter(masks))})."
        )
    fold_present(model)
    dropped = _dropped_share(model, masks) if masks else 0.0
    before = _zeros(model)
    tuner: Any = model
    merged = tuner.merge_and_unload(safe_merge=True)
    if policy == "masked":
        _apply(merged, masks)
    else:
        for name in masks:
            # its zeros are gone
            set_mask(merged.get_submodule(name), None)
    after = _zeros(merged)
    if masks and policy == "dense":
        warnings.warn(f"merge: zeros fell from {before:.1%} to {after:.1%} of the matrices' weights.", stacklevel=2)
    elif masks:
        warnings.warn(
            f"merge: every zero kept; {dropped:.1%} of the update's norm lay on zeros and was dropped.",
            stacklevel=2,
        )
    merged.requires_grad_(False)
    record(merged, "merge", policy=policy, zeros_before=round(before, 6), zeros_after=round(after, 6))
    return merged


def _check_mergeable(model: nn.Module) -> None:
    """Before anything is merged: an error half way would leave a model that is neither the one nor the other."""
    for name, layer in update_layers(model):
        check_writable(layer.get_base_layer(), layer.quantization_backend, f"merge: {name}")
        for adapter in layer.active_adapters:
            if layer.has_update(adapter) and not torch.isfinite(layer.get_delta_weight(adapter)).all():
                raise ArtifactError(f"merge: {name}: adapter {adapter!r} gives NaN or infinity: its values are broken.")


PEFT_PREFIX = "base_model.model."


def _masks(model: nn.Module) -> dict[str, torch.Tensor]:
    """Path in the base model -> what is kept, (out, in), for every sparse matrix that carries an update.

    A mask that is stored counts as it is; a matrix without one, of a base that came with zeros, by its zeros.
    """
    stored: dict[str, torch.Tensor] = {}
    found: dict[str, torch.Tensor] = {}
    for name, layer in update_layers(model):
        if is_quantised(layer.get_base_layer()):
            # its zeros are what rounds to zero
            continue
        mask = get_mask(layer)
        (found if mask is None else stored)[name.removeprefix(PEFT_PREFIX)] = (
            oriented(layer) != 0 if mask is None else mask
        )
    zeros = {name: 1.0 - mask.float().mean().item() for name, mask in found.items()}
    # one threshold for a whole model leaves some matrices with very few zeros, and those count too
    if all(share < MASK_FROM for share in zeros.values()):
        return stored
    return stored | {name: mask for name, mask in found.items() if zeros[name]}


def _dropped_share(model: nn.Module, masks: dict[str, torch.Tensor]) -> float:
    """Norm of dW on the zeros over the norm of dW, over all sparse matrices."""
    lost = total = 0.0
    for name, layer in update_layers(model):
        mask = masks.get(name.removeprefix(PEFT_PREFIX))
        if mask is None:
            continue
        for adapter in layer.active_adapters:
            if layer.has_update(adapter):
                delta = layer.get_delta_weight(adapter).float()
                delta = delta.T if layer.transposed else delta
                lost += float(delta[~mask].square().sum())
                total += float(delta.square().sum())
    return float((lost / total) ** 0.5) if total else 0.0


def _apply(model: nn.Module, masks: dict[str, torch.Tensor]) -> None:
    """Write the zeros again; bits that were stored are still there."""
    for name, mask in masks.items():
        oriented(model.get_submodule(name)).masked_fill_(~mask, 0.0)


def _zeros(model: nn.Module) -> float:
    """Share of exact zeros in the weights of all linears."""
    parts = {"dsee_U", "dsee_V", "original_module"}
    linears: list[Any] = [
        module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and not parts & set(name.split(".")) and not is_quantised(module)
    ]
    count = sum(linear.weight.numel() for linear in linears)
    return sum(int((linear.weight == 0).sum()) for linear in linears) / count if count else 0.0
