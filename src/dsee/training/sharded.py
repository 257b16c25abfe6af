"""Tuning a model that lies in pieces on several processes (FSDP2), and having it whole again afterwards."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import nn

from dsee.architectures import layers
from dsee.errors import InputError
from dsee.processes import count, uses_gpus
from dsee.training.recipe import Recipe


def check_sharding(recipe: Recipe) -> None:
    """Refuse what a model in pieces cannot do.

    Args:
        recipe: the recipe.

    Raises:
        InputError: the first such thing.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true", "yes"):
        raise InputError(
            "ACCELERATE_USE_FSDP is set, by accelerate's configuration perhaps. Say fsdp: true in the recipe instead, "
            "and start the processes without it: dsee takes the model apart and puts it together by itself."
        )
    if not recipe.fsdp:
        return
    if recipe.method not in ("dsee", "lora"):
        raise InputError(f"fsdp: method: {recipe.method} trains the base itself; only an update or a LoRA is gathered.")
    if recipe.gates:
        raise InputError("fsdp: gates are folded into whole weights. Set gates: false, or fsdp: false.")
    if recipe.cache_prefix:
        raise InputError("fsdp: cache_prefix takes layers out of a whole model. Set one of them to false.")
    if recipe.prune and recipe.prune.schedule:
        raise InputError("fsdp: a schedule masks whole weights while tuning. Leave prune.schedule out, or fsdp: false.")


def in_pieces(model: nn.Module) -> nn.Module:
    """Return a twin whose parameters lie in pieces on all processes; the model itself stays whole and as it is.

    The twin's modules are new, its numbers are those of the model. Every layer is gathered when it runs, and let go
    afterwards; what is outside of the layers is one more piece.

    Args:
        model: a model of a mapped family, with updates or without, the same on every process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    tensors = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    mesh = init_device_mesh("cuda" if uses_gpus() else "cpu", (count(),))
    for view in layers(twin):
        fully_shard(view.module, mesh=mesh)
    fully_shard(twin, mesh=mesh)
    # how a Trainer learns that the model deals with its gradients by itself; nn.Module types its attributes
    vars(twin)["is_distributed_loading_by_transformers"] = True
    return twin


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that may lie in pieces as one; all processes have to ask.

    Args:
        tensor: a parameter's values.
    """
    found: Any = tensor
    return found.full_tensor() if hasattr(found, "full_tensor") else tensor
