"""What heads and neurons cost, in operations or in weights, for a budget to count with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dsee.architectures import LayerView, layers, structure
from dsee.masks import bare
from dsee.measure.flops import layer_flops
from dsee.measure.sample import check_sizes
from dsee.steps import history

Structure = dict[str, list[int]]


@dataclass(frozen=True)
class Costs:
    """The cost of each layer's two halves at every number of units.

    Attributes:
        heads: for each layer its cost with 0, 1, 2, ... heads, never falling; long enough for the dense model.
        neurons: likewise with 0, 1, 2, ... neurons.
        dense: cost of the dense encoder, the whole that a budget is a share of.
    """

    heads: list[NDArray[np.float64]]
    neurons: list[NDArray[np.float64]]
    dense: float

    def of(self, sizes: Structure) -> float:
        """Return the cost of an encoder.

        Args:
            sizes: heads and neurons of each layer.
        """
        halves = ((self.heads, sizes["heads"]), (self.neurons, sizes["neurons"]))
        return float(sum(float(table[size]) for tables, counts in halves for table, size in zip(tables, counts)))  # noqa: B905 - as many layers in both


def dense_structure(model: nn.Module) -> Structure:
    """Return heads and neurons of each layer before the first cut in the model's history; without one, those it has.

    Args:
        model: a transformers model with a map.
    """
    for step in history(model):
        before = step.get("before") if step["step"] == "prune" else None
        if isinstance(before, dict) and {"heads", "neurons"} <= set(before):
            return {unit: list(before[unit]) for unit in ("heads", "neurons")}
    return structure(model)


def counted(model: nn.Module, kind: str, batch: int = 1, sequence: int = 128) -> Costs:
    """Return what heads and neurons cost without measuring anything.

    Both kinds grow in proportion to heads and to neurons, layer by layer, beside what neither changes (attention over
    an encoder's states). Updates are left out: they merge.

    Args:
        model: a transformers model with a map.
        kind: "flops" for the operations of the transformer layers, as ``dsee.flops(model, batch, sequence).encoder``
            counts them; "parameters" for the weights of their matrices, biases and norms left out.
        batch: sentences.
        sequence: tokens per sentence; the products of attention grow with its square.
    """
    check_sizes(batch, sequence)
    views, dense = layers(model), dense_structure(model)
    tables: dict[str, list[NDArray[np.float64]]] = {"heads": [], "neurons": []}
    for view, heads, neurons in zip(views, dense["heads"], dense["neurons"], strict=True):
        parts = layer_flops(view, batch, sequence) if kind == "flops" else _weights(view)
        for unit, most in (("heads", heads), ("neurons", neurons)):
            # a whole number per unit, so that the sums are exact
            each = parts[unit] // getattr(view, unit)
            tables[unit].append(np.arange(most + 1, dtype=np.float64) * each)
        tables["heads"][-1] += parts["fixed"]
    costs = Costs(tables["heads"], tables["neurons"], 0.0)
    return Costs(costs.heads, costs.neurons, costs.of(dense))


def _weights(view: LayerView) -> dict[str, int]:
    """Numbers in the matrices of a layer, by what they grow with; parts that share a module count once."""

    def numbers(linears: Iterable[Any]) -> int:
        return sum(int(bare(linear).weight.numel()) for linear in linears)

    return {
        "heads": numbers(view.linears("heads").values()),
        "neurons": numbers(view.linears("neurons").values()),
        "fixed": numbers(view.crossing()),
    }
