"""``dsee.save``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import nn

from dsee.architectures._registry import CUT_PREFIX, plain_model
from dsee.artifact.atomic import whole_folder
from dsee.artifact.auto import STRUCTURE, config_class, is_cut, plain_fields, stock_config
from dsee.artifact.card import card
from dsee.artifact.manifest import Kind, Manifest, owned_entries, refuse_other_kind, verify, write_manifest
from dsee.artifact.masks import MASKS, mask_bits
from dsee.errors import InputError
from dsee.pruning.gates import gate_values, gated_linears
from dsee.steps import history
from dsee.update.layer import GATE

ADAPTER = "adapter"
#: Gates that are being tuned lie beside the base and the adapters, since they belong to no adapter.
GATES = "gates.safetensors"


def save(model: Any, folder: str | Path, *, tokenizer: Any = None, facts: dict[str, Any] | None = None) -> Path:
    """Write a model as an artifact: whole or not at all.

    A merged model becomes a plain transformers checkpoint, under a ``model_type`` of its own if its layers were cut so
    that no stock class could rebuild them. A PeftModel is written as its (pruned) base with the update beside it, and
    loads as a PeftModel again. Masks lie beside the weights, one bit each; the zeros are in the weights themselves, so
    the model runs without the masks.

    Args:
        model: a transformers model or a PeftModel.
        folder: where to; an artifact that is there is replaced, anything else is left alone.
        tokenizer: saved along, so that the folder is complete.
        facts: plain data to keep in the manifest.

    Returns:
        The folder.

    Raises:
        InputError: not a transformers model, one with a merged update or with weights where its masks say zero, facts
            that JSON cannot hold, or a folder that holds an ONNX export.
        ArtifactError: the folder could not be written; what was there before is untouched.
    """
    base = plain_model(model)
    if not hasattr(base, "save_pretrained") or not hasattr(base, "config"):
        raise InputError(f"save: a {type(model).__name__} is not a transformers model.")
    adapted = base is not model
    # LoRA's too: a base that holds its update already would get it twice when loaded
    if any(isinstance(module, BaseTunerLayer) and module.merged for module in base.modules()):
        raise InputError(
            "save: an update is merged into the base. Use dsee.merge(model), or model.unmerge_adapter() first."
        )
    _check_facts(facts)
    masks = mask_bits(base)
    target = Path(folder)
    refuse_other_kind(target, ("model", "adapted"))
    with whole_folder(target, check=verify, owned=owned_entries) as writing:
        model_type, structure = _write_base(base, writing)
        if masks:
            save_file(masks, writing / MASKS)
        if adapted:
            model.save_pretrained(writing / ADAPTER)
            _tidy_adapters(writing / ADAPTER)
        if gates := gate_values(model):
            save_file(gates, writing / GATES)
        if tokenizer is not None:
            tokenizer.save_pretrained(writing)
        steps = history(model)
        (writing / "README.md").write_text(card(base, model_type, steps, structure, adapted=adapted), encoding="utf-8")
        kind: Kind = "adapted" if adapted else "model"
        manifest = Manifest(kind=kind, history=steps, structure=structure, facts=facts or {})
        if adapted:
            manifest.adapters, manifest.active = list(model.peft_config), list(model.active_adapters)
        write_manifest(writing, manifest)
    return target


def _check_facts(facts: dict[str, Any] | None) -> None:
    try:
        Manifest(kind="model", facts=facts or {}).model_dump(mode="json")
    except ValueError as error:
        raise InputError(f"save: facts have to be plain data that JSON can hold ({error}).") from error


def _tidy_adapters(folder: Path) -> None:
    """Take out of PEFT's files what differs from one save to the next."""
    for path in folder.rglob("README.md"):
        # a form to fill in; ours says what the model is
        path.unlink()
    for path in folder.rglob("adapter_config.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        # where the base lay on this machine; it lies one folder up
        content["base_model_name_or_path"] = None
        if content.get("modules_to_save"):
            # PEFT adds the task head once more at each load
            content["modules_to_save"] = list(dict.fromkeys(content["modules_to_save"]))
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_base(base: Any, folder: Path) -> tuple[str, Any]:
    """Write configuration and weights of a transformers model without its updates.

    Returns:
        The ``model_type`` used, and the heads and neurons of each layer where the configuration has to say them.
    """
    config, state = base.config, _base_state(base)
    if is_cut(base):
        own = config_class(config.model_type.removeprefix(CUT_PREFIX))
        base.config = stock_config(base, state) or own(**plain_fields(config))
    try:
        base.save_pretrained(folder, state_dict=state)
        return str(base.config.model_type), getattr(base.config, STRUCTURE, None)
    finally:
        base.config = config


def _base_state(base: nn.Module) -> dict[str, torch.Tensor]:
    """The state of the model as it would be without PEFT: update modules left out, wrappers taken off the names."""
    updates = tuple(
        f"{name}.{part}."
        for name, module in base.named_modules()
        if isinstance(module, BaseTunerLayer)
        for part in module.adapter_layer_names
    )
    gated = tuple(f"{name}." for name, _ in gated_linears(base))
    state = {}
    for name, value in base.state_dict().items():
        parts = name.split(".")
        if (
            name.startswith(updates)
            or (name.startswith(gated) and name.endswith(f".{GATE}"))
            or "modules_to_save" in parts
        ):
            continue
        state[".".join(part for part in parts if part not in ("base_layer", "original_module"))] = value
    return state
