"""Activation functions computed by the kernel in front of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dsee.architectures import layers
from dsee.architectures._view import LayerView, submodule
from dsee.errors import ArchitectureError
from dsee.kernels.hooks import watched
from dsee.kernels.library import ACTIVATIONS
from dsee.kernels.linear import OnKernels
from dsee.kernels.product import activate


@dataclass(frozen=True)
class Fused:
    """One activation that a layer has taken over.

    Attributes:
        linear: the layer.
        owner: the module that holds the activation.
        attribute: under which name.
        original: the activation.
        name: as the kernels call it.
    """

    linear: OnKernels
    owner: nn.Module
    attribute: str
    original: Any
    name: str


def name_of(activation: Any) -> str | None:
    """Return the kernels' name of an activation function, found by its values; None for one they do not have.

    Args:
        activation: a function or module.
    """
    points = torch.linspace(-8.0, 8.0, 161)
    try:
        values = activation(points)
    except (TypeError, ValueError, RuntimeError):
        return None
    for name in ACTIVATIONS:
        if name and torch.allclose(values, activate(points, name), rtol=1e-6, atol=1e-6):
            return name
    return None


def mapped_layers(model: nn.Module) -> list[LayerView]:
    """Return a model's layers seen through its family's map; none for a family without one.

    Args:
        model: any model.
    """
    try:
        return list(layers(model))
    except ArchitectureError:
        return []


def fuse(model: nn.Module) -> list[Fused]:
    """Let layers on the kernels compute the activation behind them, in mapped families; the others stay as they are.

    Args:
        model: a model with layers on the kernels.

    Returns:
        What was taken over, for :func:`unfuse`.
    """
    found = []
    for view in mapped_layers(model):
        own = view.architecture
        if not own.activation:
            continue
        linear = view.part(own.activated)
        # a layer with an update around it adds the update before the activation
        if not isinstance(linear, OnKernels) or watched(linear) or linear._dsee_sparse.activation:
            continue
        path, _, attribute = own.activation.rpartition(".")
        owner = submodule(view.module, path)
        original = getattr(owner, attribute)
        name = name_of(original)
        if name:
            linear._dsee_sparse.activation = name
            setattr(owner, attribute, nn.Identity())
            found.append(Fused(linear, owner, attribute, original, name))
    return found


def unfuse(fused: list[Fused]) -> None:
    """Give activations back.

    Args:
        fused: what :func:`fuse` returned.
    """
    for each in fused:
        setattr(each.owner, each.attribute, each.original)
        state = each.linear.__dict__.get("_dsee_sparse")
        if state is not None:
            state.activation = None
