"""Running a model where it is needed: ONNX Runtime for people without dsee or torch."""

from typing import TYPE_CHECKING, Any

from dsee.runtime.memory import PeakMemory, peak_memory
from dsee.runtime.onnx_model import OnnxModel

if TYPE_CHECKING:
    from dsee.runtime.onnx_export import export_onnx

__all__ = ["OnnxModel", "PeakMemory", "export_onnx", "peak_memory"]


def __getattr__(name: str) -> Any:
    # exporting needs torch, running does not
    if name == "export_onnx":
        from dsee.runtime.onnx_export import export_onnx

        return export_onnx
    raise AttributeError(f"module 'dsee.runtime' has no attribute {name!r}")
