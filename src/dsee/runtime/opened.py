"""Opening a folder with whatever runs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dsee.artifact.manifest import NAME, read_manifest
from dsee.errors import ArtifactError

if TYPE_CHECKING:
    from dsee.runtime.onnx_model import OnnxModel
    from dsee.runtime.torch_model import TorchModel


def is_onnx(folder: Path) -> bool:
    """Whether a folder is an ONNX export of ours.

    Args:
        folder: the folder.

    Raises:
        ArtifactError: its manifest is damaged.
    """
    return (folder / NAME).is_file() and read_manifest(folder).kind == "onnx"


def open_model(folder: str | Path, *, threads: int = 1, merged: bool = False) -> OnnxModel | TorchModel:
    """Open a folder: an ONNX export with onnxruntime alone, anything else with torch.

    Args:
        folder: an ONNX folder, an artifact, or a plain transformers folder.
        threads: threads for ONNX Runtime; torch's number belongs to the process, not to a model.
        merged: merge an update that lies beside its base, as one would to deploy it.

    Raises:
        ArtifactError: the folder is damaged, or holds no model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: there is no such folder.")
    if is_onnx(folder):
        from dsee.runtime.onnx_model import OnnxModel

        return OnnxModel(folder, threads=threads)
    from dsee.registration import register
    from dsee.runtime.torch_model import TorchModel

    register()
    return TorchModel(folder, merged=merged)


def weight_bytes(folder: Path) -> int:
    """Return the bytes of a folder's weights; what lies beside them is not counted, nor an export in a folder within.

    Args:
        folder: an artifact, an ONNX folder, or a plain transformers folder.
    """
    if (folder / NAME).is_file():
        # the package of measures loads torch, which an ONNX model does without
        from dsee.measure.disk import MODEL_FILES

        entries = read_manifest(folder).files
        return sum(entry.bytes for name, entry in entries.items() if Path(name).suffix in MODEL_FILES)
    from dsee.runtime.plain import plain_weights

    return sum(path.stat().st_size for path in plain_weights(folder))
