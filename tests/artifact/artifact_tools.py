"""What the tests of this folder share."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from dsee.artifact.manifest import NAME, read_manifest, seal, write_manifest
from dsee.pruning.plan import LayerPlan
from dsee.surgery.cut import cut

#: Layers that differ in heads and in neurons; the last one keeps all its heads.
UNEVEN = [LayerPlan((1,), tuple(range(5))), LayerPlan((0, 2, 3), (1,)), LayerPlan((), tuple(range(3, 30)))]
STRUCTURE = {"heads": [3, 1, 4], "neurons": [35, 39, 13]}


def unevenly_cut(model):
    cut(model, UNEVEN)
    return model


def bytes_of(folder: Path) -> dict[str, str]:
    """Relative path -> hash of every file, dsee.json included."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def beside(folder: Path) -> list[str]:
    """Names in the folder's parent other than its own: what a save may have left behind."""
    return sorted(path.name for path in folder.parent.iterdir() if path != folder)


def rehash(folder: Path) -> Path:
    """Make the manifest agree with the files again, as someone would who tampers on purpose."""
    write_manifest(folder, read_manifest(folder))
    return folder


def edit_config(folder: Path, **changes) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return rehash(folder)


def edit_manifest(folder: Path, change) -> Path:
    """Let ``change`` edit the manifest's content in place; the other files stay as they are."""
    content = json.loads((folder / NAME).read_text())
    change(content)
    content["seal"] = seal(content)
    (folder / NAME).write_text(json.dumps(content))
    return folder


def run_python(*arguments: str, timeout: int = 300) -> str:
    """Run a fresh interpreter and return what it printed."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
