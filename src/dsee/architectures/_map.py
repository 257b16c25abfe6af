"""What a map holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Architecture:
    """Where one family keeps its parts. All paths are relative to one layer unless stated otherwise.

    Attributes:
        name: the family, as in the configuration's ``model_type``.
        layers: path of the layer list inside the base model (the model without its task head).
        query: path of the query projection.
        key: path of the key projection.
        value: path of the value projection.
        output: path of the projection that joins the heads.
        ffn_in: path of the linear that makes the neurons.
        ffn_out: path of the linear that reads them.
        attention: path of the module that holds the head size.
        head_size: name of its attribute.
        heads_attributes: attributes of ``attention`` that count heads and are rewritten after a cut.
        width_attributes: attributes of ``attention`` that hold heads x head size.
        model_types: other ``model_type`` values with the same layout.
    """

    name: str
    layers: str
    query: str
    key: str
    value: str
    output: str
    ffn_in: str
    ffn_out: str
    attention: str
    head_size: str
    heads_attributes: tuple[str, ...] = ()
    width_attributes: tuple[str, ...] = ()
    model_types: tuple[str, ...] = field(default=())

    @property
    def default_targets(self) -> list[str]:
        """The projections the paper adapts: query and value."""
        return [path.rpartition(".")[2] for path in (self.query, self.value)]


def submodule(root: nn.Module, path: str) -> Any:
    """Follow a dotted path of attributes (``get_submodule`` would refuse to pass through properties)."""
    return reduce(getattr, path.split("."), root) if path else root


@dataclass(frozen=True)
class LayerView:
    """One transformer layer seen through its map.

    The modules may be plain linears or linears with an update around them.

    Attributes:
        index: position in the stack.
        module: the layer.
        architecture: its map.
    """

    index: int
    module: nn.Module
    architecture: Architecture

    def part(self, name: str) -> Any:
        """Return the module at the path that the map calls ``name`` ("query", "ffn_in", ...)."""
        return submodule(self.module, getattr(self.architecture, name))

    @property
    def head_size(self) -> int:
        """Features per head."""
        return int(getattr(self.part("attention"), self.architecture.head_size))

    @property
    def heads(self) -> int:
        """Heads now, counted from the weights."""
        return out_features(self.part("query")) // self.head_size

    @property
    def neurons(self) -> int:
        """Neurons of the feed-forward part now, counted from the weights."""
        return out_features(self.part("ffn_in"))


def out_features(linear: Any) -> int:
    """Return the output width of a linear, with or without an update around it."""
    base = linear.get_base_layer() if hasattr(linear, "get_base_layer") else linear
    return int(base.weight.shape[1] if type(base).__name__ == "Conv1D" else base.weight.shape[0])
