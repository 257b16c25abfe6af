"""The base of an artifact: configuration and weights of a transformers model without what PEFT has put into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from dsee.architectures._registry import CUT_PREFIX
from dsee.artifact.auto import COMPACT, STRUCTURE, config_class, is_cut, plain_fields, stock_config
from dsee.artifact.compact import compress
from dsee.artifact.manifest import FIRST_FORMAT, FORMAT
from dsee.artifact.sides import SIDES, sides_of
from dsee.pruning.gates import gated_linears
from dsee.pruning.mask_order import patterns
from dsee.pruning.mask_rules import Blocks
from dsee.update.layer import GATE

#: What PEFT puts into the path of a wrapped module.
WRAPPING = ("base_layer", "original_module")


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        model_type: as in ``config.json``.
        format: of the folder; the first one where older releases can read it.
        structure: heads and neurons of each layer where the configuration has to say them.
        masks: paths of the matrices whose mask is among the weights already.
    """

    model_type: str
    format: int = FIRST_FORMAT
    structure: dict[str, list[int]] | None = None
    masks: frozenset[str] = field(default_factory=frozenset)


def write_base(
    base: Any, folder: Path, masks: Mapping[str, torch.Tensor], *, compact: bool, max_shard_size: int | str
) -> Written:
    """Write configuration and weights of a transformers model without its updates.

    Args:
        base: the model; wrappers of PEFT may be in it.
        folder: where to.
        masks: packed bits by the path of each matrix.
        compact: whether sparse matrices are stored as bits and values.
        max_shard_size: as for transformers.
    """
    config, state, sides = base.config, base_state(base), sides_of(base)
    family = config.model_type.removeprefix(CUT_PREFIX)
    if compact:
        # before anything is written: whether there is a class to load it with
        config_class(family)
    if is_cut(base) or sides:
        stock = None if sides else stock_config(base, state)
        base.config = stock or config_class(family)(**plain_fields(config))
        if sides:
            setattr(base.config, SIDES, sides)
    try:
        base.save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size)
        model_type, structure = str(base.config.model_type), getattr(base.config, STRUCTURE, None)
    finally:
        base.config = config
    packed = _compress(base, folder, masks) if compact else None
    if packed is None:
        return Written(model_type, FORMAT if sides else FIRST_FORMAT, structure)
    return Written(CUT_PREFIX + family, FORMAT, structure, frozenset(packed))


def _compress(base: Any, folder: Path, masks: Mapping[str, torch.Tensor]) -> set[str] | None:
    turned = {plain_path(name) for name, module in base.named_modules() if isinstance(module, Conv1D)}
    shapes = {rule.grain for _, rule in patterns(base) if isinstance(rule, Blocks)} | {(4, 1)}
    packed = compress(folder, masks, turned, tuple(sorted(shapes)))
    if packed is not None:
        path = folder / "config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        content["model_type"] = CUT_PREFIX + content["model_type"].removeprefix(CUT_PREFIX)
        content[COMPACT] = True
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return packed


def plain_path(name: str) -> str:
    """Return a module's path as it is without PEFT.

    Args:
        name: its path in a model with PEFT's wrappers.
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPING)


def base_state(base: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state of a model as it would be without PEFT: update modules left out, wrappers taken off the names.

    Args:
        base: the transformers model.
    """
    updates = tuple(
        f"{name}.{part}."
        for name, module in base.named_modules()
        if isinstance(module, BaseTunerLayer)
        for part in module.adapter_layer_names
    )
    gated = tuple(f"{name}." for name, _ in gated_linears(base))
    state = {}
    for name, value in base.state_dict().items():
        if (
            name.startswith(updates)
            or (name.startswith(gated) and name.endswith(f".{GATE}"))
            or "modules_to_save" in name.split(".")
        ):
            continue
        state[plain_path(name)] = value
    return state
