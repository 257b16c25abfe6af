"""Which artifact a user means by a folder."""

from __future__ import annotations

from pathlib import Path

from dsee.artifact.manifest import NAME
from dsee.errors import ArtifactError, InputError


def artifact_in(folder: Path) -> Path:
    """Return the folder itself if it is an artifact, or the model inside a run's folder.

    Args:
        folder: what the user named.

    Raises:
        InputError: there is no such folder.
        ArtifactError: it is neither.
    """
    if (folder / NAME).is_file():
        return folder
    inside = folder / "model"
    if (inside / NAME).is_file():
        return inside
    if not folder.exists():
        raise InputError(f"{folder}: there is no such folder.")
    raise ArtifactError(
        f"{folder} is not a dsee artifact and holds none: there is no {NAME} in it or in {inside.name}/."
    )
