"""How many parameters a model has, and how many are trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dsee.update.layer import update_layers


@dataclass(frozen=True)
class Parameters:
    """Counts of numbers; a tied tensor counts once.

    Attributes:
        total: all parameters.
        trainable: those with ``requires_grad``.
        update: U, V and S2 values of the updates, trained or not: r (in + out) + N per matrix.
    """

    total: int
    trainable: int
    update: int

    @property
    def trainable_share(self) -> float:
        """Trainable over total, as PEFT prints it."""
        return self.trainable / self.total if self.total else 0.0


def parameters(model: nn.Module) -> Parameters:
    """Count a model's parameters.

    Args:
        model: any module.
    """
    everything = list(model.parameters())
    update = 0
    for _, layer in update_layers(model):
        for part in (layer.dsee_U, layer.dsee_V, layer.dsee_S):
            update += sum(p.numel() for p in part.parameters())
    return Parameters(
        total=sum(p.numel() for p in everything),
        trainable=sum(p.numel() for p in everything if p.requires_grad),
        update=update,
    )
