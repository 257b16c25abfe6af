"""Choosing the support of an update that is already on its model: by gradients, by another rule, or by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from torch import nn

from dsee import support
from dsee.errors import InputError, OrderError, listed, nearest
from dsee.update.layer import DseeLayer, any_merged, update_layers
from dsee.update.positions import Parts, check_names, find_support, held_to_mask, size_of, sizes_of
from dsee.update.sparse_delta import SparseDelta

#: Bytes of dense gradients held at a time: 113 matrices of 768 x 768.
MEMORY = 2**28


@dataclass(frozen=True)
class _Place:
    layer: DseeLayer
    sparse: SparseDelta
    rank: int
    parts: Parts
    sizes: list[int]


def choose_support(
    model: nn.Module,
    rule: str | None = None,
    *,
    calibration: Iterable[Mapping[str, Any]] | None = None,
    positions: Mapping[str, Any] | None = None,
    adapter: str | None = None,
    seed: int | None = None,
    within_mask: bool | None = None,
    memory: int = MEMORY,
) -> dict[str, torch.Tensor]:
    """Choose, or choose again, where S2 may be non-zero; its values stay zero, so the model computes what it did.

    With ``support="gradient"`` the score of a weight is ``sum over batches b of |dL_b / dW|``. W stays frozen, no
    ``.grad`` is touched, U and V may have been tuned before. Dense gradients are held for a group of matrices at a
    time (``memory`` bytes, at least one matrix); the model runs over the calibration set once for each group. With
    several processes, give each the same batches.

    Args:
        model: a model with an update whose S2 is untrained.
        rule: name of a rule; None for the configuration's. Others in ``dsee.support.rules()``.
        calibration: dicts of tensors with labels, for the rules that look at gradients.
        positions: instead of a rule: module name (or regular expression) -> flat positions ``row * in + column`` or
            (row, column) pairs, in (out, in) orientation. Matrices not named keep their support. Another number of
            positions than N makes a new parameter, so make the optimizer afterwards.
        adapter: the adapter's name; None for the active one.
        seed: None for the configuration's.
        within_mask: keep to the weights of the base's mask; None for what the configuration says.
        memory: bytes for dense gradients.

    Returns:
        For each matrix's path in the base model its flat positions, int64, ascending.

    Raises:
        InputError: no such rule, adapter or module, positions that do not fit, or a calibration set that is missing,
            empty, without labels, or given to a rule that has no use for it.
        OrderError: S2 is trained already, or the update is merged.
    """
    adapter = _adapter(model, adapter)
    config = _configs(model)[adapter]
    places = _places(model, adapter, config)
    if positions is not None:
        if rule not in (None, support.EXPLICIT) or calibration is not None:
            raise InputError("positions are given, so neither rule nor calibration has anything to choose. Leave them.")
        return _take(model, places, positions, config)
    rule = support.check_rule(rule or config.support)
    if rule == support.EXPLICIT:
        raise InputError("support='explicit' needs positions={module name: positions}, or name a rule to choose by.")
    batches = _batches(rule, calibration)
    _refuse_trained(model, places)
    seed, kept = (config.seed if seed is None else seed), (config.within_mask if within_mask is None else within_mask)
    found = {}
    with _any_positions(places):
        for key, gradient in _gradients(model, places, batches, memory):
            place = places[key]
            found[key] = find_support(
                place.layer,
                rule,
                place.sizes,
                rank=place.rank,
                seed=seed,
                key=key,
                parts=place.parts,
                kept=kept or held_to_mask(place.layer, config),
                gradient=gradient,
            )
    for key, chosen in found.items():
        places[key].sparse.place(chosen)
    config.support, config.seed, config.within_mask, config.positions = rule, seed, kept, {}
    return found


def _configs(model: nn.Module) -> dict[str, Any]:
    return getattr(model, "peft_config", None) or {}


def _adapter(model: nn.Module, adapter: str | None) -> str:
    """The adapter that is meant: the one named, or the one active."""
    layers = update_layers(model)
    if not layers:
        raise InputError(
            "choose_support: this model carries no update. Put one on it first: get_peft_model(model, ...)."
        )
    known = sorted({name for _, layer in layers for name in layer.dsee_scaling})
    if adapter is None:
        active = [name for name in layers[0][1].active_adapters if name in known]
        if len(active) != 1:
            raise InputError(f"choose_support: {len(active)} updates are active; name one: adapter={known[0]!r}.")
        return active[0]
    if adapter not in known:
        raise InputError(f"choose_support: there is no adapter {adapter!r}.{nearest(adapter, known)} {listed(known)}.")
    return adapter


def _places(model: nn.Module, adapter: str, config: Any) -> dict[str, _Place]:
    """The matrices with an S2, by their path in the base model, as the configuration's patterns and seeds have it."""
    # a PeftModel holds the tuner, which holds the base; transformers' own adapters sit on the model itself
    tuner = getattr(model, "base_model", None) if hasattr(model, "get_base_model") else None
    root = tuner.model if tuner is not None and isinstance(getattr(tuner, "model", None), nn.Module) else model
    places = {}
    for key, layer in update_layers(root):
        if adapter in layer.dsee_S:
            parts, sparse = layer.dsee_parts.get(adapter), layer.dsee_S[adapter]
            rank = layer.dsee_U[adapter].weight.shape[1] if adapter in layer.dsee_U else 0
            sizes = layer.n_sparse_of(adapter) if sparse.placed else sizes_of(config, key, parts)
            sizes = sizes if isinstance(sizes, list) else [sizes] * len(parts or [0])
            places[key] = _Place(layer, sparse, rank, parts, sizes)
    if not places:
        raise InputError(f"choose_support: the update {adapter!r} has no sparse part (n_sparse=0).")
    return places


def _batches(rule: str, calibration: Iterable[Mapping[str, Any]] | None) -> list[Mapping[str, Any]] | None:
    if not support.needs_gradient(rule):
        if calibration is not None:
            raise InputError(
                f"The rule {rule!r} has no use for a calibration set. Name one that does: rule='gradient'."
            )
        return None
    if calibration is None:
        raise InputError(f"The rule {rule!r} ranks by gradients: give labelled batches as calibration=[...].")
    if isinstance(calibration, Mapping):
        raise InputError("calibration is one batch; give a list of batches: calibration=[batch].")
    # kept, for there may be several passes, and a loader that shuffles would give each another order
    return list(calibration)


def _refuse_trained(model: nn.Module, places: Mapping[str, _Place]) -> None:
    if any_merged(model):
        raise OrderError("choose_support: an update is merged into the base. Call unmerge_adapter() first.")
    for key, place in places.items():
        if place.sparse.placed and bool(place.sparse.weight.detach().any()):
            raise OrderError(
                f"choose_support: S2 of {key} has been trained, and another support would throw its values away. "
                "Choose before tuning S2, or put a fresh adapter on the model."
            )


@contextmanager
def _any_positions(places: Mapping[str, _Place]) -> Iterator[None]:
    """Let an update without a support run inside the block: its values are zero, so that any positions will do."""
    waiting = [place.sparse for place in places.values() if not place.sparse.placed]
    try:
        for sparse in waiting:
            sparse.place(torch.arange(sparse.n_sparse))
        yield
    finally:
        for sparse in waiting:
            sparse.place(torch.full((sparse.n_sparse,), -1))


def _gradients(
    model: nn.Module, places: Mapping[str, _Place], batches: list[Mapping[str, Any]] | None, memory: int
) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Each matrix's accumulated gradient, a group of matrices after the other; None where the rule does not ask."""
    if batches is None:
        yield from ((key, None) for key in places)
        return
    bases = {key: place.layer.get_base_layer() for key, place in places.items()}
    for group in support.groups(bases, memory):
        yield from support.accumulated(model, group, batches).items()


def _take(
    model: nn.Module, places: Mapping[str, _Place], positions: Mapping[str, Any], config: Any
) -> dict[str, torch.Tensor]:
    check_names(positions, list(places))
    named = {key: place for key, place in places.items() if get_pattern_key(positions.keys(), key) in positions}
    _refuse_trained(model, named)
    found, sizes = {}, {}
    for key, place in named.items():
        shape = (place.sparse.out_features, place.sparse.in_features)
        found[key] = support.flat_positions(positions[get_pattern_key(positions.keys(), key)], shape, key)
        if not found[key].numel():
            raise InputError(f"positions of {key} are empty: leave the module out, and it keeps its support.")
        sizes[key] = size_of(found[key], shape, key, place.parts)
    for key, chosen in found.items():
        if chosen.numel() != places[key].sparse.n_sparse or places[key].parts is not None:
            # what transformers' loader makes room by
            config.n_sparse_pattern[key] = sizes[key]
        places[key].sparse.place(chosen)
    if len(found) == len(places):
        config.support, config.positions = support.EXPLICIT, {}
    return found
