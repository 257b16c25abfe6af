"""Loading a checkpoint that transformers wrote, for comparison with what dsee made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dsee.artifact.auto import model_class
from dsee.errors import ArtifactError

CONFIG = "config.json"


def is_plain(folder: Path) -> bool:
    """Whether a folder looks like a transformers checkpoint.

    Args:
        folder: the folder.
    """
    return (folder / CONFIG).is_file() and bool(plain_weights(folder))


def plain_weights(folder: Path) -> list[Path]:
    """Return the files with weights of a transformers checkpoint.

    Args:
        folder: the folder.
    """
    return sorted(folder.glob("model*.safetensors"))


def load_plain(folder: Path) -> Any:
    """Load a transformers checkpoint with the class that wrote it.

    Args:
        folder: ``config.json`` and safetensors.

    Returns:
        The model, in eval mode.

    Raises:
        ArtifactError: the folder holds no such checkpoint, or one that cannot be read.
    """
    if not is_plain(folder):
        raise ArtifactError(
            f"{folder} holds no model: neither a dsee.json nor a {CONFIG} with model.safetensors beside it."
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        model_type, name = str(config["model_type"]), str(config["architectures"][0])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{folder / CONFIG} does not describe a model ({error!r}).") from error
    found = model_class(model_type, name)
    if found is None:
        raise ArtifactError(f"{folder} holds a {name} of type {model_type!r}, which this transformers does not know.")
    try:
        return found.from_pretrained(folder, use_safetensors=True).eval()
    except Exception as error:
        # transformers raises anything on files that make no sense
        raise ArtifactError(f"{folder} could not be loaded ({type(error).__name__}: {error}).") from error
