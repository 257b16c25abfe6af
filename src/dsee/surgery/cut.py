"""Physically removing heads and neurons."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dsee.architectures import LayerView, layers, structure
from dsee.architectures._registry import plain_model
from dsee.errors import InputError, OrderError
from dsee.pruning.plan import LayerPlan
from dsee.surgery.linear import check_cuttable, select
from dsee.update.layer import any_merged, update_layers


def cut(model: nn.Module, plan: list[LayerPlan]) -> None:
    """Remove what the plan names, in place: W, biases, U, V and S2, for every adapter.

    The logits afterwards equal those of the uncut model with the same heads and neurons zeroed. Parameters are
    replaced, so an optimizer made before has to be made afresh.

    Args:
        model: a transformers model with a map, with or without updates.
        plan: one entry per layer.

    Raises:
        OrderError: an update is merged.
        InputError: the plan does not fit the model, or a weight is recomputed at every call.
        ArchitectureError: a weight is of a kind that cannot be cut. Nothing has been changed then, nor above.
    """
    if any_merged(model):
        raise OrderError("prune: an update is merged into the weights. Call model.unmerge_adapter() first.")
    views = layers(model)
    if len(plan) != len(views):
        raise InputError(f"cut: a plan for {len(plan)} layers does not fit a model of {len(views)}.")
    for view, layer_plan in zip(views, plan, strict=True):
        _check(view, "heads", layer_plan.heads, ("query", "key", "value", "output"))
        _check(view, "neurons", layer_plan.neurons, ("ffn_in", "ffn_out"))
    for view, layer_plan in zip(views, plan, strict=True):
        if layer_plan.heads:
            _cut_heads(view, layer_plan.heads)
        if layer_plan.neurons:
            _cut_neurons(view, layer_plan.neurons)
    plain_model(model).config.dsee_structure = structure(model)
    _note_sizes(model)


def _check(view: LayerView, unit: str, removed: tuple[int, ...], parts: tuple[str, ...]) -> None:
    if not removed:
        return
    size = int(getattr(view, unit))
    if min(removed) < 0 or max(removed) >= size:
        raise InputError(f"cut: layer {view.index} has {unit} 0 to {size - 1}; the plan names {unit} {list(removed)}.")
    if len(set(removed)) == size:
        raise InputError(f"cut: the plan removes all {unit} of layer {view.index}; at least one has to stay.")
    for part in parts:
        check_cuttable(view.part(part), f"layer {view.index}, {part}")


def _kept(size: int, removed: tuple[int, ...]) -> torch.Tensor:
    # on the CPU even while a loader builds the model on the meta device
    mask = torch.ones(size, dtype=torch.bool, device="cpu")
    mask[list(removed)] = False
    return mask.nonzero().reshape(-1)


def _cut_heads(view: LayerView, removed: tuple[int, ...]) -> None:
    size = view.head_size
    heads = _kept(view.heads, removed)
    features = (heads[:, None] * size + torch.arange(size, device="cpu")).reshape(-1)
    for part in ("query", "key", "value"):
        select(view.part(part), features, 0)
    select(view.part("output"), features, 1)
    note_head_count(view)


def note_head_count(view: LayerView) -> None:
    """Bring the attention module's own counters in line with its weights.

    Args:
        view: the layer.
    """
    attention: Any = view.part("attention")
    for name in view.architecture.heads_attributes:
        setattr(attention, name, view.heads)
    for name in view.architecture.width_attributes:
        setattr(attention, name, view.heads * view.head_size)


def _cut_neurons(view: LayerView, removed: tuple[int, ...]) -> None:
    neurons = _kept(view.neurons, removed)
    select(view.part("ffn_in"), neurons, 0)
    select(view.part("ffn_out"), neurons, 1)


def _note_sizes(model: nn.Module) -> None:
    """Write each matrix's actual N into the adapters' configurations, so that every loader makes room for it."""
    configs = getattr(model, "peft_config", {})
    for name, layer in update_layers(plain_model(model)):
        for adapter in layer.dsee_scaling:
            configs[adapter].n_sparse_pattern[name] = layer.n_sparse_of(adapter)
