"""Finding files and folders, those inside installed packages included."""

from __future__ import annotations

import importlib.util
from importlib.resources import files
from pathlib import Path

from dsee.errors import InputError, nearest

PACKAGE = "package:"


def locate(reference: str, base: Path) -> Path:
    """Turn a recipe's reference into a path.

    Args:
        reference: a path, absolute or relative to ``base``, or ``package:NAME/PATH``: a resource of an installed
            package, which is found without importing it.
        base: the recipe's folder.

    Raises:
        InputError: the package is not installed.
    """
    if not reference.startswith(PACKAGE):
        path = Path(reference).expanduser()
        return path if path.is_absolute() else base / path
    name, _, inside = reference.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None:
        raise InputError(
            f"{reference}: the package {name!r} is not installed. Install it with: pip install {name.replace('_', '-')}"
        )
    # a module made from its spec but never run: some packages load everything they have on import
    return Path(str(files(importlib.util.module_from_spec(spec)) / inside))


def existing_file(reference: str, base: Path) -> Path:
    """Return the path of a file that is there.

    Args:
        reference: as for :func:`locate`.
        base: the recipe's folder.

    Raises:
        InputError: there is no such file, or it is empty.
    """
    path = locate(reference, base)
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"{path}: there is no such file.{nearest(path.name, beside)}")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: it has 0 bytes.")
    return path
