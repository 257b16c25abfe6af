"""What has to be the same on all processes of a run, in a form that is quick to compare."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsee._version import __version__
from dsee.artifact.manifest import NAME, sha256
from dsee.processes import agree, count
from dsee.training.setting import Setting

#: Seconds that a shared disk may take to show one machine what another one has written.
DISK = 60.0


def starting_point(setting: Setting) -> dict[str, Any]:
    """Return the recipe, the content of data and model, and the versions at work.

    Args:
        setting: the run.
    """
    if count() == 1:
        return {}
    return {
        "recipe": setting.recipe.model_dump(mode="json"),
        "inputs": setting.inputs,
        "dsee": __version__,
        "torch": str(torch.__version__),
    }


def digests(model: nn.Module) -> dict[str, str]:
    """Return a hash of everything that may differ between processes: what is trained, supports, masks, all shapes.

    Args:
        model: the model; its frozen weights count by their shapes, since all processes read them from one place.
    """
    if count() == 1:
        return {}
    found = {name: _hash(buffer) for name, buffer in model.named_buffers()}
    for name, parameter in model.named_parameters():
        found[name] = _hash(parameter) if parameter.requires_grad else str(tuple(parameter.shape))
    return found


def _hash(tensor: torch.Tensor) -> str:
    plain = tensor.detach().cpu().contiguous()
    content = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return hashlib.sha256(f"{tuple(plain.shape)} {plain.dtype} ".encode() + content).hexdigest()


def seen_by_all(paths: Sequence[Path]) -> None:
    """Make sure that every process sees what the first one has written.

    Args:
        paths: artifacts and files.

    Raises:
        ProcessError: one does not, even after a while.
    """
    if count() == 1 or not paths:
        return
    remedy = "All machines have to see one output folder: put it on a disk that they share."
    agree("the output folder", {str(path): _content(path) for path in paths}, remedy)


def _content(path: Path) -> str | None:
    """Hash of a file or of an artifact's manifest, which has those of all its files."""
    file = path / NAME if path.is_dir() else path
    end = time.monotonic() + DISK
    while not file.is_file():
        if time.monotonic() > end:
            return None
        time.sleep(0.05)
        file = path / NAME if path.is_dir() else path
    return sha256(file)
