"""Merging the update into the weights, with a stated policy about zeros."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from dsee.errors import ArtifactError, InputError, OrderError, nearest
from dsee.kernels.linear import refuse_on_kernels
from dsee.masks import oriented, set_mask
from dsee.steps import record
from dsee.surgery.gates import fold_present
from dsee.surgery.split import split
from dsee.update.bases import check_writable, is_quantised
from dsee.update.layer import any_merged, update_layers
from dsee.update.masked import sparse_masks

Policy = Literal["masked", "dense", "split", "error"]
POLICIES: tuple[str, ...] = ("masked", "dense", "split", "error")


def merge(model: Any, policy: Policy = "masked") -> Any:
    """Return a plain transformers model with the active update merged into its weights.

    Removed heads and neurons commute with merging, so there the merge is exact. A base with zeros is another matter:
    dW is dense, and adding it would wipe them out. What counts as a zero is the mask of :func:`dsee.prune` where there
    is one, else, in a base that came with at least 1 % zeros, the zeros themselves. An update tuned with
    ``DseeConfig(masked=True)`` lies on no zero, so that every policy merges it exactly. Gates, if there are any, are
    folded into the weights.

    Args:
        model: a PeftModel with a DSEE update. Its base is changed in place and returned, as by ``merge_and_unload``.
        policy: "masked" keeps every zero of a sparse matrix and warns of the part of dW it drops there; "dense" is
            exact and warns of the zeros it destroys; "split" is exact and keeps every zero, with what of the update
            would fall on them beside the matrix (:class:`dsee.update.SideLinear`); "error" refuses to merge an update
            that lies on zeros.

    Returns:
        The transformers model, without PEFT.

    Raises:
        OrderError: nothing to merge, ``policy="error"`` and zeros would go, or ``policy="split"`` a second time.
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
    masks = sparse_masks(update_layers(model))
    if policy == "error" and (threatened := [name for name, (off, _) in _lost(model, masks).items() if off]):
        raise OrderError(
            f"merge: {len(threatened)} matrices hold zeros that merging would destroy (first: {_path(threatened[0])})."
        )
    fold_present(model)
    lost = _lost(model, masks)
    hurt = {name: masks[name] for name, (off, _) in lost.items() if off}
    before = _zeros(model)
    aside = [_path(name) for name in split(model, hurt)] if policy == "split" and hurt else []
    tuner: Any = model
    merged = tuner.merge_and_unload(safe_merge=True)
    for name, mask in masks.items():
        linear = merged.get_submodule(_path(name))
        if name not in hurt or policy != "dense":
            # bits that were stored are still there; only the zeros are written again
            oriented(linear).masked_fill_(~mask, 0.0)
        else:
            set_mask(linear, None)
    after = _zeros(merged)
    dropped = _share(lost) if policy == "masked" else 0.0
    if hurt:
        warnings.warn(_said(policy, before, after, dropped, len(aside)), stacklevel=2)
    merged.requires_grad_(False)
    facts = {"zeros_before": round(before, 6), "zeros_after": round(after, 6)}
    if masks and policy == "masked":
        facts["dropped"] = round(dropped, 6)
    record(merged, "merge", policy=policy, **facts)
    return merged


def _said(policy: str, before: float, after: float, dropped: float, aside: int) -> str:
    if policy == "dense":
        return f"merge: zeros fell from {before:.1%} to {after:.1%} of the matrices' weights."
    if policy == "split":
        return f"merge: every zero kept; on {aside} matrices a part of the update stays beside the weight."
    return f"merge: every zero kept; {dropped:.1%} of the update's norm lay on zeros and was dropped."


def _check_mergeable(model: nn.Module) -> None:
    """Before anything is merged: an error half way would leave a model that is neither the one nor the other."""
    for name, layer in update_layers(model):
        check_writable(layer.get_base_layer(), layer.quantization_backend, f"merge: {name}")
        for adapter in layer.active_adapters:
            if layer.has_update(adapter) and not torch.isfinite(layer.get_delta_weight(adapter)).all():
                raise ArtifactError(f"merge: {name}: adapter {adapter!r} gives NaN or infinity: its values are broken.")


PEFT_PREFIX = "base_model.model."


def _path(name: str) -> str:
    """Path in the base model of a module of the PeftModel."""
    return name.removeprefix(PEFT_PREFIX)


def _lost(model: nn.Module, masks: dict[str, torch.Tensor]) -> dict[str, tuple[float, float]]:
    """For every sparse matrix the square of dW's norm on its zeros, and of all of dW."""
    found = {}
    for name, layer in update_layers(model):
        if name not in masks:
            continue
        off = total = 0.0
        for adapter in layer.active_adapters:
            if layer.has_update(adapter):
                delta = layer.get_delta_weight(adapter).float()
                delta = delta.T if layer.transposed else delta
                off += float(delta[~masks[name]].square().sum())
                total += float(delta.square().sum())
        found[name] = (off, total)
    return found


def _share(lost: dict[str, tuple[float, float]]) -> float:
    """Norm of dW on the zeros over the norm of dW, over all sparse matrices."""
    off, total = (sum(pair[i] for pair in lost.values()) for i in (0, 1))
    return float((off / total) ** 0.5) if total else 0.0


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
