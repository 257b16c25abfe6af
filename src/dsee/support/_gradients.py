"""Sum over calibration batches of |dLoss/dW|, a few matrices at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dsee.errors import InputError
from dsee.gradients import asking, lookup_gradient, loss_of, weight_gradient
from dsee.modes import evaluating

Batch = Mapping[str, Any]


def groups(linears: Mapping[str, Any], memory: int) -> Iterator[dict[str, nn.Module]]:
    """Split matrices into groups whose dense fp32 gradients fit into some memory, at least one matrix each.

    Args:
        linears: bare linears by name.
        memory: bytes.
    """
    group: dict[str, nn.Module] = {}
    used = 0
    for name, linear in linears.items():
        size = 4 * linear.weight.numel()
        if group and used + size > memory:
            yield group
            group, used = {}, 0
        group[name] = linear
        used += size
    if group:
        yield group


def accumulated(
    model: nn.Module, linears: Mapping[str, nn.Module], batches: Sequence[Batch]
) -> dict[str, torch.Tensor]:
    """Return ``sum over batches b of |dL_b / dW|`` of each linear, L_b the model's own loss on the batch.

    W itself may be frozen: its gradient is made from each linear's input x and the gradient g of its output, g^T x
    summed over tokens, in fp32. The model runs in eval mode and is left in the mode it was in; no ``.grad`` is touched.
    Memory: one dense matrix for each linear, one more while its gradient is made, and x and g of one batch.

    Args:
        model: returns a loss for a batch with labels.
        linears: Linear, Conv1D or Embedding modules inside the model, by name; without an update around them.
        batches: dicts of tensors with labels.

    Returns:
        fp32, (out, in) for each name, also for Conv1D, on the linear's device.

    Raises:
        InputError: no batch, no loss, or a linear that no gradient ever reaches.
    """
    device = next(model.parameters()).device
    scores: dict[str, torch.Tensor] = {}
    with evaluating(model):
        for batch in batches:
            placed = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            for name, dense in _dense_gradients(model, linears, placed):
                scores[name] = dense if name not in scores else scores[name].add_(dense)
    if not batches:
        raise InputError("The calibration set is empty: at least one batch is needed to choose by gradients.")
    for name in linears:
        if name not in scores or not scores[name].any():
            raise InputError(
                f"{name}: no calibration batch sent a gradient through it, so its support cannot be chosen by "
                "gradients. Does the model use it, and do the batches have labels other than the ignored -100?"
            )
    return scores


def _dense_gradients(
    model: nn.Module, linears: Mapping[str, nn.Module], batch: Batch
) -> Iterator[tuple[str, torch.Tensor]]:
    """Each linear's |dL/dW| for one batch, made one after the other."""
    seen: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {name: [] for name in linears}

    def capture(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            output = asking(output)
            seen[name].append((args[0].detach(), output))
            return output

        return hook

    hooks = [linear.register_forward_hook(capture(name)) for name, linear in linears.items()]
    try:
        with torch.enable_grad():
            loss = _finite_loss(model(**batch), batch)
            outputs = [output for pairs in seen.values() for _, output in pairs]
            # unused outputs have none
            gradients: Iterator[torch.Tensor | None] = iter(
                torch.autograd.grad(loss, outputs, allow_unused=True) if outputs else ()
            )
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        for name, pairs in seen.items():
            # a shared linear runs more than once in a batch; its gradient is the sum
            total = None
            for x, g in [(x, next(gradients)) for x, _ in pairs]:
                if g is None:
                    continue
                one = weight_gradient(g, x) if x.is_floating_point() else lookup_gradient(g, x, _rows(linears[name]))
                total = one if total is None else total.add_(one)
            if total is not None:
                yield name, total.abs_()


def _rows(embedding: Any) -> int:
    return int(embedding.num_embeddings)


def _finite_loss(output: Any, batch: Batch) -> torch.Tensor:
    loss = loss_of(output, batch)
    if not torch.isfinite(loss).all():
        raise InputError("The loss of a calibration batch is NaN or infinite, so its gradients say nothing.")
    return loss
