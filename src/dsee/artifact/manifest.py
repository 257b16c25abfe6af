"""``dsee.json``: what the folder is, how it came about, and the hash of every file. Written last."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dsee._version import __version__
from dsee.errors import ArtifactError, InputError

NAME = "dsee.json"
#: Raised when older releases can no longer read what this one writes: 2 has compact files, branches of a split merge,
#: and updates without their base. A folder with none of these says 1.
FORMAT = 2
FIRST_FORMAT = 1
#: A manifest is a few kilobytes; this bounds what a hostile one can make us read.
LARGEST_MANIFEST = 16 * 2**20

Kind = Literal["model", "adapted", "update", "onnx", "lora"]


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
        kind: "model" (a plain or cut transformers model), "adapted" (a base with an update beside it), "update" (the
            same without the base's weights), "onnx" or "lora" (an update exported as a LoRA adapter).
        history: the steps the model has been through.
        structure: heads and neurons of each layer, if the family is mapped.
        adapters: names of the updates beside the base, in their order.
        active: those of them that were switched on.
        facts: measured or derived facts of the export, such as the parity of an ONNX model.
        files: every other file of the folder, by its relative path.
    """

    model_config = ConfigDict(extra="forbid")

    format: int = FIRST_FORMAT
    dsee: str = __version__
    kind: Kind
    history: list[dict[str, Any]] = []
    structure: dict[str, list[int]] | None = None
    adapters: list[str] = []
    active: list[str] = []
    facts: dict[str, Any] = {}
    files: dict[str, FileEntry] = {}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def seal(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's own content, so that a flipped bit in it shows too.

    Args:
        content: the manifest as plain data; its "seal" is left out.
    """
    rest = {key: value for key, value in content.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Hash all files of a folder and write the manifest beside them.

    Args:
        folder: the folder, complete but for the manifest.
        manifest: its other fields.
    """
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != NAME)
    files = {p.relative_to(folder).as_posix(): FileEntry(bytes=p.stat().st_size, sha256=sha256(p)) for p in paths}
    content = manifest.model_copy(update={"files": files}).model_dump(mode="json")
    content["seal"] = seal(content)
    (folder / NAME).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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
        found = seal(content) if isinstance(content, dict) else None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is not valid JSON ({error}): the file is damaged. Copy or save it again."
        ) from error
    version = content.get("format") if isinstance(content, dict) else None
    # not isinstance: True is an int, and "2" or 2.0 would be taken for one further down
    if type(version) is int and version > FORMAT:
        raise ArtifactError(
            f"{folder} has format {version}, written by dsee {content.get('dsee')}; this is dsee {__version__}, which "
            f"reads up to format {FORMAT}. Upgrade with: pip install --upgrade dsee"
        )
    if found is None or type(version) is not int or version < 1 or not {"kind", "files"} <= set(content):
        raise ArtifactError(f"{path} is damaged: it has no format, kind or files. Copy or save it again.")
    if content.pop("seal", None) != found:
        raise ArtifactError(f"{path} is damaged: its content is not what was saved. Copy it again.")
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
        # by its letters: a link, as in the Hub's cache, is the doing of whoever owns the disk
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise ArtifactError(
                f"{folder / NAME} names {name!r}, outside the folder: the manifest is hostile or damaged."
            )
        try:
            _verify_file(folder / name, entry)
        except OSError as error:
            raise ArtifactError(f"{folder / name} could not be read ({error.strerror}).") from error
    return manifest


def _verify_file(path: Path, entry: FileEntry) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing from the artifact. Copy the folder again, or save the model again.")
    size = path.stat().st_size
    if size != entry.bytes:
        word = "truncated" if size < entry.bytes else "longer than it was"
        raise ArtifactError(f"{path} is {word}: {size} bytes instead of {entry.bytes}. Copy or save it again.")
    if sha256(path) != entry.sha256:
        raise ArtifactError(f"{path} has other bytes than were saved (SHA-256 differs): it is damaged. Copy it again.")


def owned_entries(folder: Path) -> set[str] | None:
    """Return the relative paths of the files a dsee artifact consists of, or None if the folder is not one."""
    try:
        manifest = read_manifest(folder)
    except ArtifactError:
        return None
    return {NAME, *manifest.files}


def refuse_other_kind(folder: Path, kinds: tuple[Kind, ...]) -> None:
    """Keep an export from taking the place of the model it was made from, and the other way round.

    Args:
        folder: where something is about to be written.
        kinds: what may be replaced.

    Raises:
        InputError: the folder holds an artifact of another kind.
    """
    try:
        found = read_manifest(folder).kind
    except ArtifactError:
        return
    if found not in kinds:
        raise InputError(
            f"{folder} holds an artifact of kind {found!r}, which this would replace. Choose another folder."
        )
