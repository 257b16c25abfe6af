"""What scores and support rules that look at data share: the loss of a batch, and gradients of frozen weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dsee.errors import InputError


def loss_of(output: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """Return the loss that a model gave for a batch.

    Args:
        output: what the model returned.
        batch: what it was called with.

    Raises:
        InputError: no labels, so no loss.
    """
    if isinstance(output, Mapping):
        loss = output.get("loss")
    elif isinstance(output, tuple) and "labels" in batch:
        # a model with return_dict=False puts the loss first
        loss = output[0]
    else:
        loss = getattr(output, "loss", None)
    if loss is None:
        raise InputError("The calibration batches have no labels, so the model returns no loss. Add 'labels'.")
    found: torch.Tensor = loss
    return found


def asking(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor that gradients reach; below the first trained layer none would, so the graph starts here.

    Args:
        x: any floating tensor.
    """
    return x if x.requires_grad else x.detach().requires_grad_()


def weight_gradient(gradient: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Return dL/dW of y = x W^T, summed over all tokens.

    Args:
        gradient: dL/dy, (..., out).
        inputs: x, (..., in).

    Returns:
        (out, in), fp32.
    """
    rows = gradient.detach().reshape(-1, gradient.shape[-1]).float()
    return rows.T @ inputs.reshape(-1, inputs.shape[-1]).float()


def lookup_gradient(gradient: torch.Tensor, ids: torch.Tensor, rows: int) -> torch.Tensor:
    """Return dL/dW of y = W[ids], summed over all tokens.

    Args:
        gradient: dL/dy, (..., width).
        ids: token numbers, (...,).
        rows: of W.

    Returns:
        (rows, width), fp32.
    """
    flat = gradient.detach().reshape(-1, gradient.shape[-1]).float()
    return flat.new_zeros(rows, flat.shape[1]).index_add_(0, ids.reshape(-1), flat)
