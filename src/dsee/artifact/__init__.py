"""The folder on disk: safetensors and JSON, written aside, checked, then renamed; nothing is ever unpickled."""

from typing import TYPE_CHECKING, Any

from dsee.artifact.manifest import FORMAT, Manifest, read_manifest, verify

if TYPE_CHECKING:
    from dsee.artifact.load import load
    from dsee.artifact.save import save

__all__ = ["FORMAT", "Manifest", "load", "read_manifest", "save", "verify"]


def __getattr__(name: str) -> Any:
    # the manifest is read without torch; models are not
    if name == "load":
        from dsee.artifact.load import load

        return load
    if name == "save":
        from dsee.artifact.save import save

        return save
    raise AttributeError(f"module 'dsee.artifact' has no attribute {name!r}")
