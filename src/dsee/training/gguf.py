"""A base out of a GGUF file: read and dequantised by transformers, then a plain model like any other."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from dsee.errors import InputError, MissingExtraError
from dsee.tasks.places import existing_file


def gguf_arguments(name: str | None, folder: str) -> dict[str, Any]:
    """Return what transformers' loaders have to be told of a GGUF file.

    Args:
        name: its name in the folder; None for none.
        folder: the model's folder.

    Raises:
        InputError: there is no such file, or it is none of that kind.
        MissingExtraError: the package that reads such files is not installed.
    """
    if name is None:
        return {}
    path = existing_file(name, Path(folder))
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise InputError(f"gguf_file: {path} is no GGUF file: it does not begin with the letters GGUF.")
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError(f"Reading {name} (package gguf)", "nlg")
    return {"gguf_file": name}


def dense_arguments() -> dict[str, Any]:
    """Return what more a model's loader has to be told, so that nothing stays packed."""
    import transformers

    # older releases of transformers 5 always unpack and have no such setting
    kind = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": kind(dequantize=True)} if kind else {}


def plain(model: Any) -> Any:
    """Return the same model without a trace of the file it came from, so that it is saved and loaded as any other.

    Args:
        model: a model with dense weights.
    """
    fields = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    config = type(model.config).from_dict(fields)
    made = type(model)(config).to(model.dtype)
    made.load_state_dict(model.state_dict())
    made.generation_config = model.generation_config
    return made.eval()
