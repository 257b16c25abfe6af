"""``dsee inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dsee.artifact.manifest import Manifest


def inspect(
    folder: Annotated[Path, typer.Argument(help="An artifact, or the folder of a run.", metavar="FOLDER")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a folder holds, how it was made, and whether it is whole. Needs no torch."""
    from dsee.artifact.manifest import verify
    from dsee.cli.folders import artifact_in

    found = artifact_in(folder)
    manifest = verify(found)
    facts = _facts(found, manifest)
    typer.echo(json.dumps(facts, indent=2) if as_json else _text(found, facts))


def _facts(folder: Path, manifest: Manifest) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "kind": manifest.kind,
        "written_by": f"dsee {manifest.dsee}",
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "files": {name: entry.bytes for name, entry in manifest.files.items()},
        "structure": manifest.structure,
        "history": manifest.history,
        "facts": manifest.facts,
    }
    weights = sorted(folder.glob("*.safetensors"))
    if weights:
        facts["parameters"] = sum(_count(path) for path in weights)
    return facts


def _count(path: Path) -> int:
    from math import prod

    from safetensors import safe_open

    with safe_open(path, framework="numpy") as tensors:
        return sum(prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 - not a dict


def _text(folder: Path, facts: dict[str, Any]) -> str:
    from dsee.artifact.card import describe

    lines = [
        f"{folder}: {facts['kind']}, whole, written by {facts['written_by']}",
        f"size        {facts['bytes'] / 1e6:.1f} MB in {len(facts['files'])} files",
    ]
    if "parameters" in facts:
        lines.append(f"parameters  {facts['parameters']:,}")
    if facts["structure"]:
        lines += [f"{unit:<11} {' '.join(map(str, sizes))}" for unit, sizes in facts["structure"].items()]
    lines += [f"{key:<11} {value}" for key, value in facts["facts"].items() if not isinstance(value, dict)]
    lines += [f"step {i:<6} {describe(step)}" for i, step in enumerate(facts["history"], 1)]
    lines += [f"file        {name} ({size:,} bytes)" for name, size in facts["files"].items()]
    return "\n".join(lines)
