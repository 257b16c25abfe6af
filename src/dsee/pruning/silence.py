"""Running a model as if some heads and neurons were gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from dsee.architectures import LayerView
from dsee.pruning.plan import LayerPlan


@contextmanager
def silenced(views: list[LayerView], plans: list[LayerPlan]) -> Iterator[None]:
    """Zero what the plans name wherever it is read, inside the block.

    Args:
        views: the layers.
        plans: one per layer.
    """
    with ExitStack() as stack:
        for view, plan in zip(views, plans, strict=True):
            for part, removed, size in (("output", plan.heads, view.heads), ("ffn_out", plan.neurons, view.neurons)):
                if removed:
                    handle = view.part(part).register_forward_pre_hook(_silencer(removed, size))
                    stack.callback(handle.remove)
        yield


def _silencer(removed: tuple[int, ...], size: int) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x: torch.Tensor = args[0]
        keep = torch.ones(size, dtype=x.dtype, device=x.device)
        keep[list(removed)] = 0.0
        return (x * keep.repeat_interleave(x.shape[-1] // size), *args[1:])

    return hook
