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
from dsee.update.layer import DseeLayer


@dataclass(frozen=True)
class Flops:
    """Operations of one forward pass.

    Attributes:
        projections: query, key, value and output projections.
        attention: the two products of attention.
        feed_forward: the two linears of the feed-forward parts.
        update: low-rank and sparse branches that run beside a weight (none after merging).
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
    """Count the operations of one forward pass of an encoder.

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
    projections = sum(_linear(view.part(p), tokens) for view in views for p in ("query", "key", "value", "output"))
    feed_forward = sum(_linear(view.part(p), tokens) for view in views for p in ("ffn_in", "ffn_out"))
    # scores and weighted sum: heads x tokens x tokens x head size each
    attention = sum(2 * 2 * batch * view.heads * sequence**2 * view.head_size for view in views)
    outside = [(linear, batch if once else tokens) for linear, once in _outside(model, views)]
    rest = sum(_linear(linear, count) for linear, count in outside)
    counted = [(view.part(p), tokens) for view in views for p in PARTS] + outside
    update = sum(_update(linear, count) for linear, count in counted)
    zeros = sum(2 * count * _zeros(linear) for linear, count in counted)
    total = projections + feed_forward + attention + update + rest
    return Flops(projections, attention, feed_forward, update, rest, total - zeros)


PARTS = ("query", "key", "value", "output", "ffn_in", "ffn_out")


def _base(linear: Any) -> Any:
    return linear.get_base_layer() if isinstance(linear, DseeLayer) else linear


def _zeros(linear: Any) -> int:
    weight: torch.Tensor = _base(linear).weight
    return int(torch.count_nonzero(weight == 0))


def _linear(linear: Any, tokens: int) -> int:
    out_features, in_features = linear_shape(_base(linear))
    return 2 * tokens * out_features * in_features


def _update(linear: Any, tokens: int) -> int:
    """Branches that run now: active, not disabled, not merged."""
    if not isinstance(linear, DseeLayer) or linear.merged or linear.disable_adapters:
        return 0
    parts = (linear.dsee_U, linear.dsee_V, linear.dsee_S)
    running = [part[name] for name in linear.active_adapters for part in parts if name in part]
    return sum(2 * tokens * int(module.weight.numel()) for module in running)


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
        elif not isinstance(module, nn.Linear):
            continue
        once = "pooler" in name if id(module) in of_body else sentence_task or "seq_relationship" in name
        yield module, once


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
