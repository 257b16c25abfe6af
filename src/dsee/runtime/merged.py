"""Loading an artifact the way it would be deployed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from dsee.architectures._registry import plain_model
from dsee.artifact.load import load
from dsee.surgery.gates import fold_present
from dsee.surgery.merge import merge


def load_merged(folder: str | Path) -> Any:
    """Load an artifact as a plain transformers model; an update beside its base is merged first, and gates are folded.

    Args:
        folder: what :func:`dsee.save` wrote.
    """
    model = load(folder)
    if plain_model(model) is model:
        fold_present(model)
        return model
    with warnings.catch_warnings():
        # what masks drop of the update is said where a model is merged to be kept
        warnings.filterwarnings("ignore", message="merge: every zero kept")
        return merge(model)
