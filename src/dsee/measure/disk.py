"""Bytes on disk."""

from __future__ import annotations

from pathlib import Path

#: What a model needs to run; cards and manifests are left out.
MODEL_FILES = {".safetensors", ".onnx", ".data", ".bin"}


def folder_bytes(folder: str | Path, *, weights_only: bool = False) -> int:
    """Return the bytes of all files under a folder.

    Args:
        folder: where to look, sub-folders included.
        weights_only: count only files that hold weights.
    """
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if not weights_only or path.suffix in MODEL_FILES)
