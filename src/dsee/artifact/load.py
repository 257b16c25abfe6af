"""``dsee.load``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftModel

from dsee.artifact.atomic import heal
from dsee.artifact.auto import model_class
from dsee.artifact.manifest import read_manifest, verify
from dsee.artifact.save import ADAPTER
from dsee.errors import ArtifactError, InputError
from dsee.steps import restore


def load(folder: str | Path, *, trainable: bool = False, **kwargs: Any) -> Any:
    """Load an artifact that :func:`dsee.save` wrote; its logits are those of the model that was saved.

    Every file is checked against the manifest first.

    Args:
        folder: the artifact.
        trainable: for a base with an update beside it, whether tuning goes on.
        **kwargs: passed on to ``from_pretrained`` (``dtype``, ``device_map``, ``attn_implementation``, ...).

    Returns:
        The transformers model in eval mode, or a PeftModel if the update was saved beside its base.

    Raises:
        ArtifactError: the folder is missing, damaged, foreign or too new; the message names the file.
        InputError: the folder holds an ONNX model.
    """
    folder = Path(folder)
    heal(folder)
    manifest = verify(folder, read_manifest(folder))
    if manifest.kind == "onnx":
        raise InputError(f"{folder} holds an ONNX model. Use dsee.runtime.OnnxModel(folder), or `dsee predict`.")
    model = _load_base(folder, kwargs)
    if manifest.kind == "adapted":
        model = PeftModel.from_pretrained(model, str(folder / ADAPTER), is_trainable=trainable)
    restore(model, manifest.history)
    model.eval()
    return model


def _load_base(folder: Path, kwargs: dict[str, Any]) -> Any:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type, name = str(config["model_type"]), str(config["architectures"][0])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ArtifactError(
            f"{folder / 'config.json'} does not describe a model ({error!r}). Save it again."
        ) from error
    found = model_class(model_type, name)
    if found is None:
        raise ArtifactError(
            f"{folder} holds a {name} of type {model_type!r}, which neither this dsee nor this transformers knows. "
            "Upgrade both, or import the package that defines it first."
        )
    try:
        return found.from_pretrained(folder, **kwargs)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{folder} could not be loaded as {name}: {error}") from error
