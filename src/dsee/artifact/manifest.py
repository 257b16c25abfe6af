"""``dsee.json``: what the folder is, how it came about, and the hash of every file. Written last."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dsee._version import __version__
from dsee.errors import ArtifactError

NAME = "dsee.json"
#: Raised when older releases could no longer read what this one writes.
FORMAT = 1
#: A manifest is a few kilobytes; this bounds what a hostile one can make us read.
LARGEST_MANIFEST = 16 * 2**20

Kind = Literal["model", "adapted", "onnx"]


class FileEntry(BaseModel):
    """Size in bytes and SHA-256 of one file."""

    model_config = ConfigDict(extra="forbid")

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """The manifest.

    Attributes:
        format: version of the folder's layout.
        dsee: version of the library that wrote it.
        kind: "model" (a plain or cut transformers model), "adapted" (a base with an update beside it) or "onnx".
        history: the steps the model has been through.
        structure: heads and neurons of each layer, if the family is mapped.
        facts: measured or derived facts of the export, such as the parity of an ONNX model.
        files: every other file of the folder, by its relative path.
    """

    model_config = ConfigDict(extra="forbid")

    format: int = FORMAT
    dsee: str = __version__
    kind: Kind
    history: list[dict[str, Any]] = []
    structure: dict[str, list[int]] | None = None
    facts: dict[str, Any] = {}
    files: dict[str, FileEntry] = {}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Hash all files of a folder and write the manifest beside them.

    Args:
        folder: the folder, complete but for the manifest.
        manifest: its other fields.
    """
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != NAME)
    files = {p.relative_to(folder).as_posix(): FileEntry(bytes=p.stat().st_size, sha256=sha256(p)) for p in paths}
    text = manifest.model_copy(update={"files": files}).model_dump(mode="json")
    (folder / NAME).write_text(json.dumps(text, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(folder: str | Path) -> Manifest:
    """Read and validate the manifest of a folder; its files are not looked at.

    Args:
        folder: the artifact.

    Raises:
        ArtifactError: no such folder, not an artifact, damaged, or of a newer format.
    """
    folder = Path(folder)
    path = folder / NAME
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: there is no such folder.")
    if not path.is_file():
        raise ArtifactError(
            f"{folder} is not a dsee artifact: it has no {NAME}. If saving was interrupted, save again; a plain "
            "transformers folder is loaded with AutoModel.from_pretrained."
        )
    if path.stat().st_size > LARGEST_MANIFEST:
        raise ArtifactError(f"{path} is larger than any manifest: the file is damaged or not ours.")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is not valid JSON ({error}): the file is damaged. Copy or save it again."
        ) from error
    version = content.get("format") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise ArtifactError(
            f"{folder} has format {version}, written by dsee {content.get('dsee')}; this is dsee {__version__}, which "
            f"reads up to format {FORMAT}. Upgrade with: pip install --upgrade dsee"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{path} is damaged: {where or 'content'}: {first['msg']}. Copy or save it again."
        ) from error


def verify(folder: str | Path, manifest: Manifest | None = None) -> Manifest:
    """Check every file of an artifact against its manifest.

    Args:
        folder: the artifact.
        manifest: its manifest, if read already.

    Returns:
        The manifest.

    Raises:
        ArtifactError: a file is missing, has another size, or other bytes; the message names it.
    """
    folder = Path(folder)
    manifest = manifest or read_manifest(folder)
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ArtifactError(
                f"{folder / NAME} names {name!r}, outside the folder: the manifest is hostile or damaged."
            )
        if not path.is_file():
            raise ArtifactError(f"{path} is missing from the artifact. Copy the folder again, or save the model again.")
        size = path.stat().st_size
        if size != entry.bytes:
            word = "truncated" if size < entry.bytes else "longer than it was"
            raise ArtifactError(f"{path} is {word}: {size} bytes instead of {entry.bytes}. Copy or save it again.")
        if sha256(path) != entry.sha256:
            raise ArtifactError(
                f"{path} has other bytes than were saved (SHA-256 differs): it is damaged. Copy it again."
            )
    return manifest


def owned_entries(folder: Path) -> set[str] | None:
    """Return the top-level names a dsee artifact consists of, or None if the folder is not one."""
    try:
        manifest = read_manifest(folder)
    except ArtifactError:
        return None
    return {NAME} | {name.split("/")[0] for name in manifest.files}
