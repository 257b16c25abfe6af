"""Loading an artifact the way it would be deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsee.architectures._registry import plain_model
from dsee.artifact.load import load
from dsee.surgery.merge import merge


def load_merged(folder: str | Path) -> Any:
    """Load an artifact as a plain transformers model; an update beside its base is merged first.

    Args:
        folder: what :func:`dsee.save` wrote.
    """
    model = load(folder)
    return model if plain_model(model) is model else merge(model)
