"""Floating-point operations of one forward pass, counted from the shapes that are there.

Two operations per multiply-add. Matrix products only, as ``torch.utils.flop_counter.FlopCounterMode`` counts them on
eager attention; that tool misses scaled-dot-product attention on CPUs and takes zeros for work, hence our own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dsee.architectures import LayerView, base_model, layers
from dsee.architectures._registry import plain_model
from dsee.measure.sample import check_sizes
from dsee.update.bases import linear_shape
from dsee.update.embedding import DseeEmbedding
from dsee.update.layer import DseeLayer, update_layers
from dsee.update.side import SideBranch


@dataclass(frozen=True)
class Flops:
    """Operations of one forward pass.

    Attributes:
        projections: query, key, value and output projections.
        attention: the products of attention.
        feed_forward: the linears of the feed-forward parts.
        update: low-rank and sparse branches that run beside a weight (none after merging, but for a split merge).
        rest: pooler, task head and other linears.
        effective: total with exact zeros of the weights left out. Theoretical: time is another matter.
    """

    projections: int
    attention: int
    feed_forward: int
    update: int
    rest: int
    effective: int

    @property
    def encoder(self) -> int:
        """What the transformer layers cost."""
        return self.projections + self.attention + self.feed_forward + self.update

    @property
    def total(self) -> int:
        """Everything."""
        return self.encoder + self.rest


def flops(model: nn.Module, batch: int = 1, sequence: int = 128) -> Flops:
    """Count the operations of one forward pass over whole sentences, without a cache.

    Causal attention counts in full, as it is computed by the eager products. A model with an encoder and a decoder
    reads ``sequence`` tokens and writes as many.

    Args:
        model: a transformers model of a mapped family, with or without updates.
        batch: sentences.
        sequence: tokens per sentence.

    Returns:
        The counts.

    Raises:
        ArchitectureError: the family has no map.
        InputError: no sentence or no token.
    """
    check_sizes(batch, sequence)
    tokens = batch * sequence
    views = layers(model)
    attending = [pair for view in views for pair in _attending(view, tokens)]
    feeding = [(linear, tokens) for view in views for linear in view.linears("neurons").values()]
    outside = [(linear, batch if once else tokens) for linear, once in _outside(model, views)]
    projections, feed_forward, rest = (
        sum(_linear(linear, count) for linear, count in counted) for counted in (attending, feeding, outside)
    )
    attention = sum(_products(view, batch, sequence) for view in views)
    counted = attending + feeding + outside
    update = sum(_update(linear, count) for linear, count in counted) + _lookups(model, tokens)
    zeros = sum(2 * count * _zeros(linear) for linear, count in counted)
    total = projections + feed_forward + attention + update + rest
    return Flops(projections, attention, feed_forward, update, rest, total - zeros)


def layer_flops(view: LayerView, batch: int, sequence: int) -> dict[str, int]:
    """Count the operations of one layer, updates left out, by what they grow with.

    Args:
        view: the layer.
        batch: sentences.
        sequence: tokens per sentence.

    Returns:
        "heads" and "neurons", each in proportion to their number, and "fixed", the attention over an encoder's states.
    """
    tokens, crossing = batch * sequence, view.crossing()
    attending = sum(_linear(linear, count) for linear, count in _attending(view, tokens))
    fixed = sum(_linear(linear, tokens) for linear in crossing) + _crossing_products(view, batch, sequence)
    return {
        "heads": attending + _products(view, batch, sequence) - fixed,
        "neurons": sum(_linear(linear, tokens) for linear in view.linears("neurons").values()),
        "fixed": fixed,
    }


def _attending(view: LayerView, tokens: int) -> list[tuple[Any, int]]:
    """The projections around attention and the rows each of them is applied to."""
    own, further = view.linears("heads"), view.further()
    found = [(linear, 2 * _span(view) if name in further else tokens) for name, linear in own.items()]
    if _span(view) and not further:
        # relative positions go through the query's and the key's own projections
        found += [(view.part(part), 2 * _span(view)) for part in ("query", "key")]
    return found + [(linear, tokens) for linear in view.crossing()]


def _span(view: LayerView) -> int:
    """Relative positions on each side that queries and keys are held against, as in DeBERTa; mostly none."""
    name = view.architecture.position_span
    return int(getattr(view.part("attention"), name, 0)) if name else 0


def _products(view: LayerView, batch: int, sequence: int) -> int:
    """The products of attention: each query with each key, the weighted sum of values, and what else is held."""
    width = view.heads * view.width("output")
    # two operations a multiply-add, two products
    total = 2 * 2 * batch * width * sequence**2
    if _span(view):
        kinds = {"c2p", "p2c"} & set(view.part("attention").pos_att_type)
        total += 2 * len(kinds) * batch * width * sequence * 2 * _span(view)
    return total + _crossing_products(view, batch, sequence)


def _crossing_products(view: LayerView, batch: int, sequence: int) -> int:
    crossing = view.crossing()
    return 2 * 2 * batch * linear_shape(_base(crossing[0]))[0] * sequence**2 if crossing else 0


def _base(linear: Any) -> Any:
    return linear.get_base_layer() if isinstance(linear, DseeLayer) else linear


def _zeros(linear: Any) -> int:
    weight: torch.Tensor = _base(linear).weight
    return int(torch.count_nonzero(weight == 0))


def _linear(linear: Any, tokens: int) -> int:
    base = _base(linear)
    if isinstance(base, nn.Conv1d):
        return 2 * tokens * base.weight.numel()
    out_features, in_features = linear_shape(base)
    return 2 * tokens * out_features * in_features


def _update(linear: Any, tokens: int) -> int:
    """Branches that run now: of a split merge, and of updates that are active, not disabled, not merged."""
    base = _base(linear)
    beside = (base.side_up, base.side_low, base.side_values) if isinstance(base, SideBranch) else ()
    branch = sum(2 * tokens * part.numel() for part in beside if part is not None)
    parts = (linear.dsee_U, linear.dsee_V, linear.dsee_S) if isinstance(linear, DseeLayer) else ()
    return branch + _running(linear, parts, tokens)


def _running(layer: Any, parts: tuple[Any, ...], tokens: int) -> int:
    """Products with those parts of an update that run now: its adapter is active, not disabled and not merged."""
    if not parts or layer.merged or layer.disable_adapters:
        return 0
    running = [part[name] for name in layer.active_adapters for part in parts if name in part]
    return sum(2 * tokens * int(module.weight.numel()) for module in running)


def _lookups(model: nn.Module, tokens: int) -> int:
    """Updates of embeddings: U is looked up, V multiplied by, and the entries of S2 are added at most."""
    found = [layer for _, layer in update_layers(model) if isinstance(layer, DseeEmbedding)]
    return sum(_running(layer, (layer.dsee_V, layer.dsee_S), tokens) for layer in found)


def _outside(model: nn.Module, views: list[LayerView]) -> Iterator[tuple[nn.Module, bool]]:
    """Linears outside the layers, and whether each runs once per sentence instead of once per token."""
    inner, body = plain_model(model), base_model(model)
    inside = {id(module) for view in views for module in view.module.modules()}
    of_body = {id(module) for module in body.modules()}
    sentence_task = any(task in type(inner).__name__ for task in ("ForSequenceClassification", "ForMultipleChoice"))
    skip: set[int] = set()
    for name, module in inner.named_modules():
        if id(module) in inside or id(module) in skip or _idle_copy(inner, name):
            continue
        if isinstance(module, DseeLayer):
            skip |= {id(part) for part in module.modules()}
            if isinstance(module, DseeEmbedding):
                continue
        elif not isinstance(module, (nn.Linear, nn.Conv1d)):
            continue
        # decoders score every token and use the last one's
        at_end = (sentence_task and name != "score") or "seq_relationship" in name or "multiple_choice_head" in name
        yield module, "pooler" in name or (at_end and id(module) not in of_body)


def _idle_copy(model: nn.Module, name: str) -> bool:
    """Whether PEFT keeps this module aside: the untrained original, or the copy of an adapter that is not active."""
    parts = name.split(".")
    if "original_module" in parts:
        return True
    if "modules_to_save" not in parts[:-1]:
        return False
    at = parts.index("modules_to_save")
    wrapper: Any = model.get_submodule(".".join(parts[:at]))
    return parts[at + 1] not in wrapper.active_adapters
