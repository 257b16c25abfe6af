"""Maps that say where each model family keeps its heads, neurons and projections: one small file per family."""

from dsee.architectures import bert, distilbert, electra, roberta  # noqa: F401 - each file registers its family
from dsee.architectures._map import Architecture, LayerView
from dsee.architectures._registry import (
    base_model,
    default_targets,
    find,
    layers,
    register,
    structure,
    supported,
)

__all__ = [
    "Architecture",
    "LayerView",
    "base_model",
    "default_targets",
    "find",
    "layers",
    "register",
    "structure",
    "supported",
]
