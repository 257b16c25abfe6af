"""A layer seen through its map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import nn

from dsee.architectures._map import Architecture
from dsee.errors import ArchitectureError

#: Parts that may share one module, in the order of their rows.
_SHARING = (("query", "key", "value"), ("ffn_in", "gate"))


def _step(module: Any, name: str) -> Any:
    if name.lstrip("-").isdigit():
        return module[int(name)]
    return getattr(module, name)


def submodule(root: nn.Module, path: str) -> Any:
    """Follow a dotted path of attributes and places in lists.

    ``get_submodule`` would refuse to pass through properties.

    Args:
        root: where to start.
        path: the path; of several, separated by "|", the first that is there.

    Raises:
        AttributeError: there is none.
    """
    *others, last = path.split("|")
    for each in others:
        try:
            return submodule(root, each)
        except (AttributeError, IndexError):
            continue
    return reduce(_step, last.split("."), root) if last else root


def _oriented(linear: Any) -> torch.Tensor:
    """The bare weight of a linear with or without an update, as (out, in), without a gradient; a view if plain."""
    if hasattr(linear, "base_weight"):
        # a layer with updates can read a quantised weight too
        weight: torch.Tensor = linear.base_weight()
        return weight.detach()
    weight = linear.weight.detach()
    return weight.T if type(linear).__name__ == "Conv1D" else weight


def _outputs(linear: Any) -> int:
    """Output width of a linear with or without an update; a quantised weight's own shape may be another."""
    base = linear.get_base_layer() if hasattr(linear, "get_base_layer") else linear
    if type(base).__name__ == "Conv1D":
        return int(base.weight.shape[1])
    return int(getattr(base, "out_features", base.weight.shape[0]))


@dataclass(frozen=True)
class LayerView:
    """One transformer layer seen through its map.

    The modules may be plain linears or linears with an update around them.

    Attributes:
        index: position in the stack; with several stacks, counted on from one to the next.
        module: the layer.
        architecture: its map.
    """

    index: int
    module: nn.Module
    architecture: Architecture

    def part(self, name: str) -> Any:
        """Return the module at the path that the map calls ``name`` ("query", "ffn_in", ...)."""
        return submodule(self.module, getattr(self.architecture, name))

    def names(self, unit: str) -> tuple[str, ...]:
        """Return the parts whose output rows belong to heads or to neurons.

        Args:
            unit: "heads" or "neurons".

        Returns:
            For :meth:`part`, :meth:`rows` and :meth:`matrix`: query, key and value, or ffn_in and any gate.
        """
        if unit == "heads":
            return ("query", "key", "value")
        if not self.architecture.gate:
            return ("ffn_in",)
        try:
            self.part("gate")
        except AttributeError:
            # a family with a plain and a gated layout
            return ("ffn_in",)
        return ("ffn_in", "gate")

    def rows(self, name: str) -> slice:
        """Return which output rows of the module at :meth:`part` are this part's own.

        Args:
            name: the part.
        """
        height = _outputs(self.part(name))
        for parts in _SHARING:
            if name in parts:
                path = getattr(self.architecture, name)
                sharing = [part for part in parts if getattr(self.architecture, part) == path]
                height //= len(sharing)
                at = sharing.index(name)
                return slice(at * height, (at + 1) * height)
        return slice(0, height)

    def matrix(self, name: str) -> torch.Tensor:
        """Return W of one part without its update, a view (out, in), whatever module it shares.

        Args:
            name: the part.
        """
        return _oriented(self.part(name))[self.rows(name)]

    def width(self, name: str) -> int:
        """Return how many features of a part belong to one head: rows of query, key, value, columns of the output.

        Args:
            name: the part.
        """
        if name in ("key", "value"):
            return self.head_size
        return self.head_size * self.queries_per_head

    def linears(self, unit: str) -> dict[str, Any]:
        """Return every linear that loses rows or columns with heads or neurons, each module once.

        Args:
            unit: "heads" or "neurons".

        Returns:
            The modules by the first part that is in them, further projections by their path.
        """
        last = "output" if unit == "heads" else "ffn_out"
        named = {name: self.part(name) for name in (*self.names(unit), last)}
        if unit == "heads":
            named |= self.further()
        first = {id(linear): name for name, linear in reversed(named.items())}
        return {name: linear for name, linear in named.items() if first[id(linear)] == name}

    def further(self) -> dict[str, Any]:
        """Return the projections besides the query that have its rows, by their path; a layer may have none."""
        found = {}
        for path in self.architecture.positions:
            try:
                found[path] = submodule(self.module, path)
            except AttributeError:
                continue
        return found

    def crossing(self) -> tuple[Any, ...]:
        """Return query, key, value and output of the attention over the encoder's states; () without one."""
        own = self.architecture
        names = [getattr(own, part).removeprefix(own.attention) for part in ("query", "key", "value", "output")]
        try:
            return tuple(submodule(self.module, own.cross + name) for name in names) if own.cross else ()
        except AttributeError:
            return ()

    @property
    def head_size(self) -> int:
        """Features per head."""
        return int(getattr(self.part("attention"), self.architecture.head_size))

    @property
    def heads(self) -> int:
        """Heads now that can be removed alone, counted from the weights: key-value heads where query heads share."""
        return self._height("key") // self.head_size

    @property
    def queries_per_head(self) -> int:
        """Query heads that go with each of them: 1 unless they share keys and values."""
        return self._height("query") // self._height("key")

    @property
    def query_heads(self) -> int:
        """Query heads now."""
        return self.heads * self.queries_per_head

    @property
    def neurons(self) -> int:
        """Neurons of the feed-forward part now, counted from the weights."""
        return self._height("ffn_in")

    def _height(self, name: str) -> int:
        rows = self.rows(name)
        return int(rows.stop - rows.start)

    def refuse_fixed_heads(self, step: str) -> None:
        """Stop where the family's heads cannot be removed.

        Args:
            step: who asks, for the message.

        Raises:
            ArchitectureError: so says the map.
        """
        if self.architecture.fixed_heads:
            raise ArchitectureError(
                f"{step}: the heads of {self.architecture.name!r} cannot be removed: {self.architecture.fixed_heads}. "
                "Remove neurons: dsee.Neurons(0.4)."
            )
