"""Folders that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dsee.errors import ArtifactError, DseeError

WRITING, REPLACED = ".writing", ".replaced"

#: Relative paths of the files that the writer of an existing folder made; None if another program made the folder.
Owned = Callable[[Path], set[str] | None]


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}{suffix}")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_folder(target: Path, *, check: Callable[[Path], object], owned: Owned) -> Iterator[Path]:
    """Yield a folder beside ``target`` to write into; when the block ends well, it is checked and takes its place.

    Whatever happens in between, ``target`` stays as it was. Files in an old ``target`` that dsee did not write move
    over to the new one.

    Args:
        target: the folder to make or replace; of a link, the folder it points to.
        check: raises if the written folder is not what it should be.
        owned: says which files of an existing folder its own writer made.

    Raises:
        ArtifactError: the folder belongs to something else, or could not be written.
    """
    target = target.resolve()
    writing = _beside(target, WRITING)
    try:
        if Path.cwd().is_relative_to(target):
            raise ArtifactError(
                f"{target} is the current folder or holds it, so it cannot be replaced. Change to another."
            )
        heal(target, owned)
        own = _own_files(target, owned)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir()
        yield writing
        for path in [*writing.rglob("*"), writing]:
            _fsync(path)
        check(writing)
        _refuse_collisions(target, writing, own)
        _swap(writing, target, owned)
    except BaseException as error:
        shutil.rmtree(writing, ignore_errors=True)
        if isinstance(error, DseeError) or not _is_write_error(error):
            raise
        raise ArtifactError(_explain(error, target)) from error


def heal(target: Path, owned: Owned) -> None:
    """Finish or take back a replacement whose process died on the way.

    Args:
        target: the folder that should be there, without links in its path.
        owned: as for :func:`whole_folder`.

    Raises:
        ArtifactError: what was moved aside could not be moved back, or a file that is not dsee's not over.
    """
    replaced = _beside(target, REPLACED)
    if not replaced.is_dir():
        return
    if not target.exists():
        try:
            replaced.rename(target)
        except OSError as error:
            raise ArtifactError(
                f"{replaced} could not be moved back to {target} ({error}). Move it by hand."
            ) from error
        return
    _move_over(replaced, target, owned)
    shutil.rmtree(replaced, ignore_errors=True)


def _own_files(target: Path, owned: Owned) -> list[str]:
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
    return [name for name in _leaves(target) if name not in names]


def _leaves(folder: Path, prefix: str = "") -> Iterator[str]:
    """Relative paths of all files, links and empty folders."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink() and any(entry.iterdir()):
            yield from _leaves(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name


def _refuse_collisions(target: Path, writing: Path, own: list[str]) -> None:
    for name in own:
        new, parent = writing / name, (writing / name).parent
        same = new.is_file() and (target / name).is_file() and filecmp.cmp(new, target / name, shallow=False)
        merges = new.is_dir() and (target / name).is_dir()
        if (new.exists() and not (same or merges)) or (parent.exists() and not parent.is_dir()):
            raise ArtifactError(
                f"{target / name} was not written by dsee and is in the way of a file to be saved. Move it away "
                "or choose another folder. Nothing was changed."
            )


def _swap(writing: Path, target: Path, owned: Owned) -> None:
    replaced = _beside(target, REPLACED)
    if target.exists():
        target.rename(replaced)
        try:
            writing.rename(target)
        except OSError:
            replaced.rename(target)
            raise
        heal(target, owned)
    else:
        writing.rename(target)
    _fsync(target.parent)


def _move_over(replaced: Path, target: Path, owned: Owned) -> None:
    names = owned(replaced)
    if names is None:
        # its manifest is gone already: clearing away had begun, and own files move before that
        return
    for name in _leaves(replaced):
        there = target / name
        if name in names or os.path.lexists(there):
            continue
        try:
            there.parent.mkdir(parents=True, exist_ok=True)
            # another process may be healing at the same time
            with contextlib.suppress(FileNotFoundError):
                (replaced / name).rename(there)
        except OSError as error:
            raise ArtifactError(
                f"{target} was saved, but {name}, which dsee did not write, could not be moved over ({error}). It is "
                f"safe in {replaced}; the next load or save tries again."
            ) from error


def _is_write_error(error: BaseException) -> bool:
    """An OSError, or safetensors' own error for a failed write."""
    return isinstance(error, OSError) or (type(error).__name__ == "SafetensorError" and "I/O" in str(error))


def _explain(error: BaseException, target: Path) -> str:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    full = full or any(sign in str(error) for sign in ("No space left", "Disk quota", "File too large"))
    if full:
        return f"{target} could not be written: no space is left there. Nothing was changed; free some and try again."
    return f"{target} could not be written ({error}). Nothing was changed; check the path and its permissions."
