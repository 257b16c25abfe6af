"""Stages that survive: a stage counts as done when its record fits the recipe and its files are whole."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from dsee._version import __version__
from dsee.artifact.atomic import WRITING
from dsee.artifact.manifest import sha256, verify
from dsee.errors import ArtifactError


def fingerprint(*parts: Any) -> str:
    """Return a hash of plain data.

    Args:
        *parts: anything that JSON can hold.
    """
    text = json.dumps([__version__, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def content_of(path: Path) -> dict[str, str]:
    """Return a hash of every file under a path, by name; of a hub name that is no path, nothing.

    Args:
        path: a file or folder.
    """
    if path.is_file():
        return {path.name: sha256(path)}
    return {p.relative_to(path).as_posix(): sha256(p) for p in sorted(path.rglob("*")) if p.is_file()}


class StageRecord:
    """``stages/NAME.json``: the fingerprint a stage was made under, and what it found."""

    def __init__(self, output: Path, name: str, key: str) -> None:
        """Point at a record.

        Args:
            output: the run's folder.
            name: the stage.
            key: fingerprint of all it depends on.
        """
        self.path = output / "stages" / f"{name}.json"
        self.key = key
        #: why what an earlier run left cannot be used, in the words of :meth:`results`
        self.spoilt: str | None = None

    def results(self, artifacts: list[Path]) -> dict[str, Any] | None:
        """Return what the stage found, or None if it has to be run (again).

        Args:
            artifacts: folders and files the stage wrote; a damaged folder counts as missing.
        """
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            if stored["key"] != self.key:
                return None
            for path in artifacts:
                if not path.is_file():
                    verify(path)
            results: dict[str, Any] = stored["results"]
        except FileNotFoundError:
            return None
        except ArtifactError as error:
            self.spoilt = str(error)
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.spoilt = f"{self.path} cannot be read ({type(error).__name__})."
            return None
        return results

    def write(self, results: dict[str, Any]) -> None:
        """Mark the stage as done.

        Args:
            results: plain data.

        Raises:
            ArtifactError: the record could not be written.
        """
        text = json.dumps({"key": self.key, "results": results}, indent=2, sort_keys=True)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, text + "\n")
        except OSError as error:
            raise ArtifactError(
                f"{self.path} could not be written ({error}). Free some space and run again."
            ) from error


def half_written(output: Path) -> list[Path]:
    """Return what a run that was broken off while saving has left beside its artifacts; none of it is ever read.

    Args:
        output: the run's folder.
    """
    folders = [folder for folder in (output, output / "stages") if folder.is_dir()]
    return [path for folder in folders for path in sorted(folder.glob(f".*{WRITING}"))]


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is either the old or the new one, never half of it.

    Args:
        path: the file.
        text: its content.
    """
    aside = path.with_name(f".{path.name}{WRITING}")
    with aside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)
