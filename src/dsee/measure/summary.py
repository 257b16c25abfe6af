"""Parameters, structure and FLOPs of a model at a glance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from dsee.architectures import structure
from dsee.architectures._registry import plain_model
from dsee.errors import ArchitectureError
from dsee.masks import get_mask, masked_linears
from dsee.measure.flops import Flops, flops
from dsee.measure.parameters import Parameters, parameters
from dsee.steps import Step, history


@dataclass(frozen=True)
class Summary:
    """What :func:`summary` found; ``print`` it.

    Attributes:
        model: class of the transformers model.
        parameters: counts.
        structure: heads and neurons of each layer; None without a map.
        flops: operations of one pass; None without a map.
        sequence: tokens per sentence that the FLOPs are for.
        zeros: masked weights and all weights of the matrices that have a mask.
        history: the steps so far.
    """

    model: str
    parameters: Parameters
    structure: dict[str, list[int]] | None
    flops: Flops | None
    sequence: int
    history: list[Step]
    zeros: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        counts = self.parameters
        lines = [
            self.model,
            f"parameters  {counts.total:,}",
            f"trainable   {counts.trainable:,} ({counts.trainable_share:.3%}), of them update {counts.update:,}",
        ]
        gone, weights = self.zeros
        if weights:
            lines.append(f"zeros       {gone / weights:.1%} of the {weights:,} weights of masked matrices")
        if self.structure and self.flops:
            lines += [f"{unit:<11} {' '.join(map(str, sizes))}" for unit, sizes in self.structure.items()]
            lines.append(f"FLOPs       {self.flops.total / 1e9:.3f} G for one sentence of {self.sequence} tokens")
            if self.flops.effective < self.flops.total:
                lines.append(
                    f"effective   {self.flops.effective / 1e9:.3f} G without the zeros, which is theory, not time"
                )
        if self.history:
            lines.append("history     " + " -> ".join(step["step"] for step in self.history))
        return "\n".join(lines)


def summary(model: nn.Module, sequence: int = 128) -> Summary:
    """Describe a model.

    Args:
        model: a transformers model, with or without updates.
        sequence: tokens per sentence for the FLOPs.
    """
    shape: dict[str, Any] | None
    try:
        shape, operations = structure(model), flops(model, 1, sequence)
    except ArchitectureError:
        # a family without a map can still be tuned, so it can still be summed up
        shape, operations = None, None
    name = type(plain_model(model)).__name__
    masks = [mask for linear in masked_linears(model).values() if (mask := get_mask(linear)) is not None]
    zeros = sum(int((~mask).sum()) for mask in masks), sum(mask.numel() for mask in masks)
    return Summary(name, parameters(model), shape, operations, sequence, history(model), zeros)
