"""What calibration batches say about single weights: gradients of W + dW, and the size of the inputs.

The base is frozen and the update hides it, so no ``.grad`` is there to read. For y = (W + dW) x + b the gradient of
W + dW is the sum over tokens of grad(y) x^T, which hooks on each linear collect, exactly, for one matrix at a time.
Beside the model and one backward pass through activations this takes one fp32 number per weight looked at, and the
dense gradient of one matrix (of each matrix that the model calls more than once).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dsee.errors import InputError
from dsee.gradients import asking, loss_of, weight_gradient
from dsee.modes import evaluating
from dsee.pruning.calibration import Batch
from dsee.pruning.targets import Target

Gradients = dict[str, torch.Tensor]


def mean_squared_gradients(model: nn.Module, targets: Sequence[Target], batches: Iterable[Batch]) -> Gradients:
    """Return the mean over batches of (dLoss/d(W + dW))^2 for each target, (out, in) fp32.

    Args:
        model: returns a loss for a batch with labels; run in eval mode, no parameter's ``.grad`` is touched.
        targets: the matrices.
        batches: dicts of tensors with labels.

    Raises:
        InputError: no batch, a batch without labels, or a matrix that no batch uses.
    """
    return _mean(model, targets, batches, lambda total, gradient: total.addcmul_(gradient, gradient))


def mean_absolute_gradients(model: nn.Module, targets: Sequence[Target], batches: Iterable[Batch]) -> Gradients:
    """Return the mean over batches of |dLoss/d(W + dW)| for each target, (out, in) fp32.

    Args:
        model: returns a loss for a batch with labels; run in eval mode, no parameter's ``.grad`` is touched.
        targets: the matrices.
        batches: dicts of tensors with labels.

    Raises:
        InputError: no batch, a batch without labels, or a matrix that no batch uses.
    """
    return _mean(model, targets, batches, lambda total, gradient: total.add_(gradient.abs()))


def _mean(
    model: nn.Module,
    targets: Sequence[Target],
    batches: Iterable[Batch],
    add: Callable[[torch.Tensor, torch.Tensor], object],
) -> Gradients:
    totals: Gradients = {}

    def consume(target: Target, gradient: torch.Tensor) -> None:
        if target.name not in totals:
            totals[target.name] = torch.zeros_like(gradient)
        add(totals[target.name], gradient)

    count = 0
    with evaluating(model), _frozen(model):
        for batch in _on_device(model, batches):
            count += 1
            with _collecting(targets, consume), torch.enable_grad():
                loss = loss_of(model(**batch), batch)
                if loss.requires_grad:
                    loss.backward()
    _check_seen(count, targets, totals)
    return {name: total.div_(count) for name, total in totals.items()}


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter ask for a gradient inside the block: the graph starts at the targets' outputs alone."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


@contextmanager
def _collecting(targets: Sequence[Target], consume: Callable[[Target, torch.Tensor], None]) -> Iterator[None]:
    """Hand each target's gradient of one backward pass to ``consume`` as soon as it is complete."""
    calls: dict[str, int] = {}
    partial: Gradients = {}

    def watch(target: Target) -> Any:
        def forward(_: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            y = asking(output)
            x = args[0].detach()
            calls[target.name] = calls.get(target.name, 0) + 1

            def backward(gradient: torch.Tensor) -> None:
                found = weight_gradient(gradient, x)
                if target.name in partial:
                    found = partial.pop(target.name).add_(found)
                calls[target.name] -= 1
                if calls[target.name]:
                    partial[target.name] = found
                else:
                    consume(target, found)

            y.register_hook(backward)
            return y

        return forward

    hooks = [target.linear.register_forward_hook(watch(target)) for target in targets]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    # a call whose output the loss does not depend on has no gradient to wait for
    by_name = {target.name: target for target in targets}
    for name, found in partial.items():
        consume(by_name[name], found)


@torch.no_grad()
def input_square_sums(model: nn.Module, targets: Sequence[Target], batches: Iterable[Batch]) -> Gradients:
    """Return the sum over tokens of x^2 for each target's input features, (in,) fp64.

    Tokens that a batch's ``attention_mask`` hides do not count where they can be told apart.

    Args:
        model: run in eval mode.
        targets: the matrices.
        batches: dicts of tensors; labels are not needed.

    Raises:
        InputError: no batch, or a matrix that no batch uses.
    """
    sums: Gradients = {}
    shown: torch.Tensor | None = None

    def watch(target: Target) -> Any:
        def forward(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0].detach().double()
            if shown is not None and x.shape[:-1] == shown.shape:
                x = x[shown]
            square = x.reshape(-1, x.shape[-1]).square().sum(0)
            sums[target.name] = sums[target.name] + square if target.name in sums else square

        return forward

    hooks = [target.linear.register_forward_pre_hook(watch(target)) for target in targets]
    count = 0
    try:
        with evaluating(model):
            for batch in _on_device(model, batches):
                count += 1
                hidden = batch.get("attention_mask")
                shown = hidden.bool() if isinstance(hidden, torch.Tensor) and hidden.dim() == 2 else None
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    _check_seen(count, targets, sums)
    return sums


def _on_device(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Mapping[str, Any]]:
    device = next(model.parameters()).device
    for batch in batches:
        yield {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def _check_seen(count: int, targets: Sequence[Target], found: Mapping[str, Any]) -> None:
    if not count:
        raise InputError("The calibration set is empty: at least one batch is needed to score with data.")
    for target in targets:
        if target.name not in found:
            raise InputError(f"{target.name} is used by no calibration batch, so it cannot be scored with data.")
