"""``dsee.load``."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from dsee.architectures._registry import plain_model
from dsee.artifact.atomic import heal
from dsee.artifact.auto import model_class
from dsee.artifact.compact import INDEX
from dsee.artifact.fingerprint import check_base
from dsee.artifact.guard import check_room, guard, stored_numbers
from dsee.artifact.manifest import Manifest, owned_entries, read_manifest, verify
from dsee.artifact.masks import MASKS, linear_at, restore_compact_masks, restore_masks
from dsee.artifact.save import ADAPTER, GATES
from dsee.errors import ArtifactError, DseeError, InputError
from dsee.masks import oriented, set_mask, unpack
from dsee.pruning.gates import gate_parameters, set_gates
from dsee.steps import history, restore


def load(
    folder: str | Path,
    *,
    base: Any = None,
    adapter: str | None = None,
    trainable: bool = False,
    optimize: bool = False,
    **kwargs: Any,
) -> Any:
    """Load an artifact that :func:`dsee.save` wrote; its logits are those of the model that was saved.

    Every file is checked against the manifest first.

    Args:
        folder: the artifact.
        base: for an update saved without its base (``base=False``): the model it was tuned on, pruned already or with
            just the masks still to come, which are then put on it. A PeftModel takes the update as one more.
        adapter: another name for the update, where the folder holds one.
        trainable: for a base with an update beside it, whether tuning goes on.
        optimize: call :func:`dsee.optimize` on the model, with a sentence of 128 tokens; call it yourself with a batch
            like yours for the choice that suits it.
        **kwargs: passed on to ``from_pretrained`` (``dtype``, ``device_map``, ``attn_implementation``, ...).

    Returns:
        The transformers model in eval mode, or a PeftModel if the update was saved beside its base.

    Raises:
        ArtifactError: the folder is missing, damaged, foreign or too new, and the message names the file; or ``base``
            is another one than the update was tuned on.
        InputError: the folder holds an ONNX model or a LoRA adapter, or does not go with the other arguments.
    """
    folder = Path(folder)
    heal(folder.resolve(), owned_entries)
    manifest = verify(folder, read_manifest(folder))
    _check_kind(folder, manifest, base, adapter)
    guard(folder, manifest)
    try:
        model = _load_parts(folder, manifest, base, adapter, trainable, kwargs)
    except DseeError:
        raise
    except Exception as error:
        # transformers and PEFT raise anything on files that make no sense
        raise ArtifactError(
            f"{folder} could not be loaded ({type(error).__name__}: {error}). Save it again."
        ) from error
    # a base that others have an update on has a history of its own
    if base is None or not history(model):
        restore(model, manifest.history)
    model.eval()
    if optimize:
        # both rooms are on one floor, and a file that is only loaded needs no timing
        from dsee.runtime.optimize import optimize as run_fastest

        run_fastest(model)
    return model


def _check_kind(folder: Path, manifest: Manifest, base: Any, adapter: str | None) -> None:
    if manifest.kind == "onnx":
        raise InputError(f"{folder} holds an ONNX model. Use dsee.runtime.OnnxModel(folder), or `dsee predict`.")
    if manifest.kind == "lora":
        raise InputError(
            f"{folder} holds a LoRA adapter without its base. Use peft.PeftModel.from_pretrained(base, folder), or "
            "dsee.import_lora(base, folder) to go on tuning it as an update."
        )
    if manifest.kind == "update" and base is None:
        raise InputError(
            f"{folder} holds an update without its base. Give the model it was tuned on: dsee.load(folder, base=model)."
        )
    if manifest.kind != "update" and base is not None:
        raise InputError(f"{folder} brings its own base; base= is for what was saved with base=False. Leave it out.")
    if base is not None and not isinstance(base, nn.Module):
        raise InputError(f"base={base!r} is no model. Give the transformers model (or PeftModel) itself.")
    if adapter is not None and len(manifest.adapters) != 1:
        raise InputError(f"adapter={adapter!r} renames one update, and {folder} holds {len(manifest.adapters)}.")


def _load_parts(
    folder: Path, manifest: Manifest, base: Any, adapter: str | None, trainable: bool, kwargs: dict[str, Any]
) -> Any:
    bits = load_file(folder / MASKS) if MASKS in manifest.files else {}
    if manifest.kind == "update":
        model = plain_model(base)
        check_base(model, folder, bits)
        for name, mask in bits.items():
            linear = linear_at(model, name)
            rows, columns = oriented(linear).shape
            set_mask(linear, unpack(mask, (rows, columns)))
        model = base
    else:
        model = _load_base(folder, kwargs)
        if MASKS in manifest.files:
            restore_masks(model, folder / MASKS)
        if INDEX in manifest.files:
            restore_compact_masks(model, folder)
    if manifest.kind != "model":
        model = _load_adapters(model, folder / ADAPTER, manifest, adapter, trainable)
    if GATES in manifest.files:
        set_gates(model, load_file(folder / GATES))
        for gate in gate_parameters(model):
            gate.requires_grad_(trainable)
    return model


def _load_base(folder: Path, kwargs: dict[str, Any]) -> Any:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type, name = str(config["model_type"]), str(config["architectures"][0])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ArtifactError(
            f"{folder / 'config.json'} does not describe a model ({error!r}). Save it again."
        ) from error
    found = model_class(model_type, name)
    if found is None:
        raise ArtifactError(
            f"{folder} holds a {name} of type {model_type!r}, which neither this dsee nor this transformers knows. "
            "Upgrade both, or import the package that defines it first."
        )
    _check_room(found, folder)
    model, report = found.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **kwargs)
    if report["missing_keys"]:
        # transformers has put random numbers in their place
        raise ArtifactError(
            f"{folder} holds no weights for {', '.join(sorted(report['missing_keys']))}. Save it again."
        )
    return model


def _check_room(found: Any, folder: Path) -> None:
    """Before transformers takes memory: the shapes are free to look at on the meta device."""
    config = found.config_class.from_pretrained(folder)
    with torch.device("meta"):
        empty = found(config)
    check_room(folder / "config.json", sum(p.numel() for p in empty.parameters()), stored_numbers(folder))


def _load_adapters(model: Any, folder: Path, manifest: Manifest, renamed: str | None, trainable: bool) -> Any:
    # PEFT keeps the adapter called "default" in the folder itself and the others in folders of their own
    places = {name: folder if name == "default" else folder / name for name in manifest.adapters}
    for place in places.values() or [folder]:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            # PEFT would look for a missing file on the Hub, and for an old-style one to unpickle
            if not (place / name).is_file():
                raise ArtifactError(f"{place / name} is missing from the artifact. Save the model again.")
    if renamed is not None:
        places = dict(zip([renamed], places.values(), strict=True))
    taken = sorted(set(places) & set(getattr(model, "peft_config", None) or {}))
    if taken:
        raise InputError(
            f"The model has an adapter {taken[0]!r} already. Load this one under another name: "
            "dsee.load(folder, base=model, adapter='another')."
        )
    for name, place in places.items():
        model = _with_adapter(model, name, place, trainable)
    first = next(iter(places))
    if manifest.active != [first] or list(model.active_adapters) != [first]:
        model.base_model.set_adapter(manifest.active if renamed is None else [renamed], inference_mode=not trainable)
    return model


def _with_adapter(model: Any, name: str, place: Path, trainable: bool) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            if isinstance(model, PeftModel):
                model.load_adapter(str(place), adapter_name=name, is_trainable=trainable)
                return model
            return PeftModel.from_pretrained(model, str(place), adapter_name=name, is_trainable=trainable)
        except InputError as error:
            # what would be the user's to change in code is the file's fault here
            raise ArtifactError(f"{place / 'adapter_config.json'}: {error} Save the model again.") from error
