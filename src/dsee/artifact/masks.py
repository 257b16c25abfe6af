"""Masks on disk: one file of packed bits beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dsee.artifact.base import base_state, plain_path
from dsee.artifact.compact import read_masks
from dsee.errors import ArtifactError, InputError
from dsee.masks import BUFFER, bare, get_mask, masked_linears, oriented, set_mask, unpack

#: One tensor for each masked matrix, named by its path: uint8, (ceil(weights / 8),), (out, in) row by row.
MASKS = "masks.safetensors"


def mask_bits(model: Any) -> dict[str, torch.Tensor]:
    """Return the packed masks of a model, by the path of each matrix as it is without PEFT.

    Args:
        model: a transformers model, with or without updates in it.

    Raises:
        InputError: a weight is there that its mask says is zero.
    """
    found = {}
    for name, linear in masked_linears(model).items():
        path = plain_path(name)
        mask = get_mask(linear)
        if mask is not None and bool((oriented(linear)[~mask] != 0).any()):
            raise InputError(
                f"save: {path} has weights where its mask says zero: an update was merged past the mask, or the "
                "weights were trained without dsee.pruning.hold(model). Merge with dsee.merge(model); to keep the "
                "weights as they are, give the mask up: dsee.pruning.set_mask(linear, None)."
            )
        found[path] = getattr(linear, BUFFER).detach().to("cpu").clone()
    return found


def restore_masks(model: Any, path: Path) -> None:
    """Give a freshly loaded model its masks.

    Args:
        model: the transformers model, its weights in place.
        path: the file that :func:`mask_bits` went into.

    Raises:
        ArtifactError: the file does not belong to this model.
    """
    for name, bits in load_file(path).items():
        try:
            linear = linear_at(model, name)
            rows, columns = oriented(linear).shape
            if bits.dtype != torch.uint8:
                raise InputError(f"its bits are stored as {bits.dtype}")
            mask = unpack(bits, (rows, columns))
        except (AttributeError, ValueError) as error:
            raise ArtifactError(
                f"{path}: the mask of {name} does not fit this model ({error}). Save it again."
            ) from error
        _put_on(linear, mask, f"{path}: {name}")


def restore_compact_masks(model: Any, folder: Path) -> None:
    """Give a freshly loaded model the masks that lie among its compact weights.

    Args:
        model: the transformers model, its weights in place.
        folder: the checkpoint.

    Raises:
        ArtifactError: the files do not belong to this model.
    """
    shapes = {name: tuple(value.shape) for name, value in base_state(model).items()}
    for name, mask in read_masks(folder, shapes).items():
        try:
            linear = linear_at(model, name)
        except AttributeError as error:
            raise ArtifactError(f"{folder}: the model has no {name} to mask. Save it again.") from error
        _put_on(linear, mask, f"{folder}: {name}")


def linear_at(model: Any, name: str) -> Any:
    """Return the bare linear at a path that knows of no wrappers.

    Args:
        model: a transformers model; updates may be on it.
        name: the path.
    """
    found = model
    for part in name.split("."):
        found = getattr(bare(found), part)
    return bare(found)


def _put_on(linear: Any, mask: torch.Tensor, where: str) -> None:
    mask = mask.to(linear.weight.device)
    if mask.shape != oriented(linear).shape or bool((oriented(linear)[~mask] != 0).any()):
        raise ArtifactError(
            f"{where} has weights where its mask says zero: masks and weights are of different models. Save it again."
        )
    set_mask(linear, mask)
