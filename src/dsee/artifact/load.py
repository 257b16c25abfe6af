"""``dsee.load``."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file

from dsee.artifact.atomic import heal
from dsee.artifact.auto import model_class
from dsee.artifact.manifest import Manifest, owned_entries, read_manifest, verify
from dsee.artifact.masks import MASKS, restore_masks
from dsee.artifact.save import ADAPTER, GATES
from dsee.errors import ArtifactError, DseeError, InputError
from dsee.pruning.gates import gate_parameters, set_gates
from dsee.steps import restore


def load(folder: str | Path, *, trainable: bool = False, optimize: bool = False, **kwargs: Any) -> Any:
    """Load an artifact that :func:`dsee.save` wrote; its logits are those of the model that was saved.

    Every file is checked against the manifest first.

    Args:
        folder: the artifact.
        trainable: for a base with an update beside it, whether tuning goes on.
        optimize: call :func:`dsee.optimize` on the model, with a sentence of 128 tokens; call it yourself with a batch
            like yours for the choice that suits it.
        **kwargs: passed on to ``from_pretrained`` (``dtype``, ``device_map``, ``attn_implementation``, ...).

    Returns:
        The transformers model in eval mode, or a PeftModel if the update was saved beside its base.

    Raises:
        ArtifactError: the folder is missing, damaged, foreign or too new; the message names the file.
        InputError: the folder holds an ONNX model or a LoRA adapter.
    """
    folder = Path(folder)
    heal(folder.resolve(), owned_entries)
    manifest = verify(folder, read_manifest(folder))
    if manifest.kind == "onnx":
        raise InputError(f"{folder} holds an ONNX model. Use dsee.runtime.OnnxModel(folder), or `dsee predict`.")
    if manifest.kind == "lora":
        raise InputError(
            f"{folder} holds a LoRA adapter without its base. Use peft.PeftModel.from_pretrained(base, folder), or "
            "dsee.import_lora(base, folder) to go on tuning it as an update."
        )
    try:
        model = _load_base(folder, kwargs)
        if MASKS in manifest.files:
            restore_masks(model, folder / MASKS)
        if manifest.kind == "adapted":
            model = _load_adapters(model, folder / ADAPTER, manifest, trainable)
        if GATES in manifest.files:
            set_gates(model, load_file(folder / GATES))
            for gate in gate_parameters(model):
                gate.requires_grad_(trainable)
    except DseeError:
        raise
    except Exception as error:
        # transformers and PEFT raise anything on files that make no sense
        raise ArtifactError(
            f"{folder} could not be loaded ({type(error).__name__}: {error}). Save it again."
        ) from error
    restore(model, manifest.history)
    model.eval()
    if optimize:
        # both rooms are on one floor, and a file that is only loaded needs no timing
        from dsee.runtime.optimize import optimize as run_fastest

        run_fastest(model)
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
    model, report = found.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **kwargs)
    if report["missing_keys"]:
        # transformers has put random numbers in their place
        raise ArtifactError(
            f"{folder} holds no weights for {', '.join(sorted(report['missing_keys']))}. Save it again."
        )
    return model


def _load_adapters(model: Any, folder: Path, manifest: Manifest, trainable: bool) -> Any:
    # PEFT keeps the adapter called "default" in the folder itself and the others in folders of their own
    places = {name: folder if name == "default" else folder / name for name in manifest.adapters}
    for place in places.values() or [folder]:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            # PEFT would look for a missing file on the Hub, and for an old-style one to unpickle
            if not (place / name).is_file():
                raise ArtifactError(f"{place / name} is missing from the artifact. Save the model again.")
    first, *others = places
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        model = PeftModel.from_pretrained(model, str(places[first]), adapter_name=first, is_trainable=trainable)
        for name in others:
            model.load_adapter(str(places[name]), adapter_name=name, is_trainable=trainable)
    if manifest.active != [first]:
        model.base_model.set_adapter(manifest.active, inference_mode=not trainable)
    return model
