"""Physically removing heads and neurons."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dsee.architectures import LayerView, layers, structure
from dsee.architectures._registry import plain_model
from dsee.architectures._view import submodule
from dsee.errors import InputError, OrderError
from dsee.pruning.plan import LayerPlan
from dsee.surgery.fold import fold_heads, fold_neurons
from dsee.surgery.gates import fold_present
from dsee.surgery.linear import check_cuttable, select
from dsee.update.layer import any_merged, update_layers


def cut(model: nn.Module, plan: list[LayerPlan], *, fold: bool = True) -> None:
    """Remove what the plan names, in place: W, its mask, biases, U, V and S2, for every adapter.

    The logits afterwards equal those of the uncut model with the same heads and neurons zeroed; what a masked part
    adds whatever the input is stays, in the output's bias (:mod:`dsee.surgery.fold`). Gates, if there are any, are
    folded into the weights. Parameters are replaced, so an optimizer made before has to be made afresh.

    Args:
        model: a transformers model with a map, with or without updates.
        plan: one entry per layer.
        fold: False on a model whose weights are still to come.

    Raises:
        OrderError: an update is merged.
        InputError: the plan does not fit the model, or a weight is recomputed at every call.
        ArchitectureError: a weight is of a kind that cannot be cut, or the family's heads cannot. Nothing has been
            changed then, nor above.
    """
    if any_merged(model):
        raise OrderError("prune: an update is merged into the weights. Call model.unmerge_adapter() first.")
    views = layers(model)
    if len(plan) != len(views):
        raise InputError(f"cut: a plan for {len(plan)} layers does not fit a model of {len(views)}.")
    for view, layer_plan in zip(views, plan, strict=True):
        _check(view, "heads", layer_plan.heads)
        _check(view, "neurons", layer_plan.neurons)
    fold_present(model)
    for view, layer_plan in zip(views, plan, strict=True):
        if fold:
            fold_heads(view, layer_plan.heads)
            fold_neurons(view, layer_plan.neurons)
        if layer_plan.heads:
            _cut_heads(view, layer_plan.heads)
        if layer_plan.neurons:
            _cut_neurons(view, layer_plan.neurons)
    plain_model(model).config.dsee_structure = structure(model)
    _note_sizes(model)


def _check(view: LayerView, unit: str, removed: tuple[int, ...]) -> None:
    if not removed:
        return
    if unit == "heads":
        view.refuse_fixed_heads("cut")
    size = int(getattr(view, unit))
    if min(removed) < 0 or max(removed) >= size:
        raise InputError(f"cut: layer {view.index} has {unit} 0 to {size - 1}; the plan names {unit} {list(removed)}.")
    if len(set(removed)) == size:
        raise InputError(f"cut: the plan removes all {unit} of layer {view.index}; at least one has to stay.")
    for part, linear in view.linears(unit).items():
        check_cuttable(linear, f"layer {view.index}, {part}")


def _kept(size: int, removed: tuple[int, ...]) -> torch.Tensor:
    # on the CPU even while a loader builds the model on the meta device
    mask = torch.ones(size, dtype=torch.bool, device="cpu")
    mask[list(removed)] = False
    return mask.nonzero().reshape(-1)


def _features(units: torch.Tensor, width: int) -> torch.Tensor:
    """Indices of the features of heads ``width`` features wide."""
    return (units[:, None] * width + torch.arange(width, device="cpu")).reshape(-1)


def _cut_heads(view: LayerView, removed: tuple[int, ...]) -> None:
    heads = _kept(view.heads, removed)
    of_query, of_output = (_features(heads, view.width(part)) for part in ("query", "output"))
    _select_rows(view, "heads", {part: _features(heads, view.width(part)) for part in view.names("heads")})
    for projection in view.further().values():
        select(projection, of_query, 0)
    select(view.part("output"), of_output, 1)
    note_head_count(view)


def _select_rows(view: LayerView, unit: str, features: dict[str, torch.Tensor]) -> None:
    """Keep features of each part, counted from the part's own first row, whether or not it shares its module."""
    modules = view.linears(unit)
    kept: dict[int, list[torch.Tensor]] = {}
    for part, own in features.items():
        kept.setdefault(id(view.part(part)), []).append(own + view.rows(part).start)
    # all rows have been looked up: a cut moves them
    for linear in modules.values():
        if id(linear) in kept:
            select(linear, torch.cat(kept[id(linear)]), 0)


def note_head_count(view: LayerView) -> None:
    """Bring the attention module's own counters in line with its weights.

    Args:
        view: the layer.
    """
    attention: Any = view.part("attention")
    for name in view.architecture.heads_attributes:
        setattr(attention, name, view.query_heads)
    for name in view.architecture.width_attributes:
        setattr(attention, name, view.heads * view.width("query"))


def _cut_neurons(view: LayerView, removed: tuple[int, ...]) -> None:
    neurons = _kept(view.neurons, removed)
    _select_rows(view, "neurons", dict.fromkeys(view.names("neurons"), neurons))
    select(view.part("ffn_out"), neurons, 1)
    for path in view.architecture.neurons_attributes:
        holder, _, name = path.rpartition(".")
        setattr(submodule(view.module, holder), name, view.neurons)


def _note_sizes(model: nn.Module) -> None:
    """Write each matrix's actual N into the adapters' configurations, so that every loader makes room for it."""
    configs = getattr(model, "peft_config", {})
    for name, layer in update_layers(plain_model(model)):
        for adapter in layer.dsee_scaling:
            configs[adapter].n_sparse_pattern[name] = layer.n_sparse_of(adapter)
