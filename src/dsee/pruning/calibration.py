"""What a few labelled batches say about the inputs of chosen linears."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from dsee.errors import InputError
from dsee.gradients import asking, loss_of
from dsee.modes import evaluating

Batch = Mapping[str, Any]


def first_order(model: nn.Module, linears: list[nn.Module], batches: Iterable[Batch]) -> list[torch.Tensor]:
    """Return activation x gradient of each linear's input, summed over the tokens of each example.

    The model is run in eval mode and left in the mode it was in; no parameter's ``.grad`` is touched.

    Args:
        model: returns a loss for a batch with labels.
        linears: modules whose first input, (batch, tokens, features) or (batch, features), is looked at.
        batches: dicts of tensors with labels.

    Returns:
        For each linear a tensor (examples, features), fp32, on the CPU.

    Raises:
        InputError: no batch, or a batch without labels.
    """
    device = next(model.parameters()).device
    collected: list[list[torch.Tensor]] = [[] for _ in linears]
    with evaluating(model):
        for batch in batches:
            on_device = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            for kept, contribution in zip(collected, _one_batch(model, linears, on_device), strict=True):
                kept.append(contribution)
    if not collected or not collected[0]:
        raise InputError("The calibration set is empty: at least one batch is needed to score with data.")
    return [torch.cat(kept) for kept in collected]


def _one_batch(model: nn.Module, linears: list[nn.Module], batch: Mapping[str, Any]) -> list[torch.Tensor]:
    inputs: dict[int, torch.Tensor] = {}

    def capture(position: int) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            x = asking(args[0])
            inputs[position] = x
            return (x, *args[1:])

        return hook

    hooks = [linear.register_forward_pre_hook(capture(i)) for i, linear in enumerate(linears)]
    try:
        with torch.enable_grad():
            output = model(**batch)
            loss = loss_of(output, batch)
            ordered = [inputs[i] for i in range(len(linears))]
            gradients = torch.autograd.grad(loss, ordered)
    finally:
        for hook in hooks:
            hook.remove()
    # the loss is a mean over the batch; times its size, each example counts the same whatever the batch
    scale = float(ordered[0].shape[0])
    products = [(x.detach().float() * g.float() * scale).cpu() for x, g in zip(ordered, gradients, strict=True)]
    return [product.flatten(1, -2).sum(1) if product.dim() > 2 else product for product in products]
