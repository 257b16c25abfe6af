"""Finding a model's map."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import nn

from dsee.architectures._map import Architecture
from dsee.architectures._view import LayerView, submodule
from dsee.errors import ArchitectureError, nearest

#: ``model_type`` of a saved model whose layers have been cut, for example "dsee_bert".
CUT_PREFIX = "dsee_"

_MAPS: dict[str, Architecture] = {}


def register(architecture: Architecture) -> Architecture:
    """Make a family known.

    Args:
        architecture: its map.
    """
    for model_type in (architecture.name, *architecture.model_types):
        _MAPS[model_type] = architecture
    return architecture


def supported() -> list[str]:
    """Return every ``model_type`` that has a map, sorted."""
    return sorted(_MAPS)


def default_targets() -> dict[str, list[str]]:
    """Return ``model_type`` -> default target modules, models saved after a cut included."""
    plain = {model_type: architecture.default_targets for model_type, architecture in _MAPS.items()}
    return plain | {CUT_PREFIX + model_type: targets for model_type, targets in plain.items()}


def plain_model(model: nn.Module) -> Any:
    """Return the transformers model inside a PEFT wrapper, or the model itself."""
    unwrap: Any = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def base_model(model: nn.Module) -> Any:
    """Return the transformers model without its task head."""
    inner = plain_model(model)
    return inner.base_model if hasattr(inner, "base_model") else inner


def find(model: nn.Module) -> Architecture:
    """Return the map of a model's family.

    Args:
        model: a transformers model, with or without PEFT around it.

    Raises:
        ArchitectureError: the family has no map.
    """
    config = getattr(plain_model(model), "config", None)
    model_type = str(getattr(config, "model_type", type(model).__name__)).removeprefix(CUT_PREFIX)
    if model_type not in _MAPS:
        raise ArchitectureError(
            f"There is no architecture map for {model_type!r}, so dsee does not know where its heads and neurons are."
            f"{nearest(model_type, supported())} Mapped: {', '.join(supported())}. A map is one small file: see "
            "docs/architectures.md. Tuning without pruning works when target_modules is given."
        )
    return _MAPS[model_type]


def layers(model: nn.Module) -> list[LayerView]:
    """Return the transformer layers of a model.

    Args:
        model: a transformers model, with or without PEFT around it.

    Raises:
        ArchitectureError: no map, or the model does not look as its map says.
    """
    architecture = find(model)
    paths = (architecture.layers,) if isinstance(architecture.layers, str) else architecture.layers
    body, stacks = base_model(model), []
    for path in paths:
        try:
            stacks.append(list(submodule(body, path)))
        except AttributeError:
            # an encoder alone, of a family that has both
            continue
    if not stacks:
        raise ArchitectureError(
            f"{type(plain_model(model)).__name__} has no {' or '.join(map(repr, paths))}, where the map of "
            f"{architecture.name!r} expects its layers."
        )
    return [LayerView(i, layer, architecture) for i, layer in enumerate(chain(*stacks))]


def structure(model: nn.Module) -> dict[str, list[int]]:
    """Return heads and neurons of each layer now: ``{"heads": [...], "neurons": [...]}``.

    Args:
        model: a transformers model with a map.
    """
    views = layers(model)
    return {"heads": [view.heads for view in views], "neurons": [view.neurons for view in views]}
