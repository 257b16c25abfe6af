"""Maps that say where each model family keeps its heads, neurons and projections: one small file per family."""

from dsee.architectures import (  # noqa: F401 - each file registers its family
    bert,
    deberta_v2,
    distilbert,
    electra,
    gpt2,
    llama,
    roberta,
    t5,
)
from dsee.architectures._map import Architecture
from dsee.architectures._registry import (
    base_model,
    default_targets,
    find,
    layers,
    register,
    structure,
    supported,
)
from dsee.architectures._view import LayerView

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
