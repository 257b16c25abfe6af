"""Folders that are either whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dsee.errors import ArtifactError, DseeError

WRITING, REPLACED = ".writing", ".replaced"


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}{suffix}")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_folder(
    target: Path, *, check: Callable[[Path], object], owned: Callable[[Path], set[str] | None]
) -> Iterator[Path]:
    """Yield a folder beside ``target`` to write into; when the block ends well, it is checked and takes its place.

    Whatever happens in between, ``target`` stays as it was. Entries of an old ``target`` that dsee did not write move
    over to the new one.

    Args:
        target: the folder to make or replace.
        check: raises if the written folder is not what it should be.
        owned: names of the entries an existing folder's own writer made; None if another program made the folder.

    Raises:
        ArtifactError: the folder belongs to something else, or could not be written.
    """
    heal(target)
    foreign = _foreign_entries(target, owned)
    writing = _beside(target, WRITING)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir()
        yield writing
        for path in [*writing.rglob("*"), writing]:
            _fsync(path)
        check(writing)
        _swap(writing, target, foreign)
    except BaseException as error:
        shutil.rmtree(writing, ignore_errors=True)
        if isinstance(error, DseeError) or not _is_write_error(error):
            raise
        raise ArtifactError(_explain(error, target)) from error


def heal(target: Path) -> None:
    """Bring back the old folder if a process died between the two renames of a replacement.

    Args:
        target: the folder that should be there.
    """
    replaced = _beside(target, REPLACED)
    if replaced.is_dir():
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(target)


def _foreign_entries(target: Path, owned: Callable[[Path], set[str] | None]) -> list[str]:
    if target.is_file():
        raise ArtifactError(f"{target} is a file; dsee saves into a folder. Choose another name.")
    if not target.exists() or not any(target.iterdir()):
        return []
    names = owned(target)
    if names is None:
        raise ArtifactError(
            f"{target} exists and was not written by dsee, so it is left alone. Choose another folder "
            "or empty this one."
        )
    return [entry.name for entry in target.iterdir() if entry.name not in names]


def _swap(writing: Path, target: Path, foreign: list[str]) -> None:
    replaced = _beside(target, REPLACED)
    if target.exists():
        target.rename(replaced)
        try:
            writing.rename(target)
        except OSError:
            replaced.rename(target)
            raise
        for name in foreign:
            (replaced / name).rename(target / name)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        writing.rename(target)
    _fsync(target.parent)


def _is_write_error(error: BaseException) -> bool:
    """An OSError, or safetensors' own error for a failed write."""
    return isinstance(error, OSError) or (type(error).__name__ == "SafetensorError" and "I/O" in str(error))


def _explain(error: BaseException, target: Path) -> str:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    full = full or any(sign in str(error) for sign in ("No space left", "Disk quota", "File too large"))
    if full:
        return f"{target} could not be written: no space is left there. Nothing was changed; free some and try again."
    return f"{target} could not be written ({error}). Nothing was changed; check the path and its permissions."
