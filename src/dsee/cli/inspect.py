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
    masks = folder / "masks.safetensors"
    sizes: dict[str, int] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        sizes |= _sizes(path)
    kept: dict[str, int] = {}
    if "compact.json" in manifest.files:
        sizes, kept = _compact(folder)
    if sizes:
        facts["parameters"] = sum(sizes.values())
    if masks.name in manifest.files:
        kept |= _kept(masks)
    if kept:
        facts["masks"] = _masks(kept, sizes)
    return facts


def _sizes(path: Path) -> dict[str, int]:
    """Numbers in each tensor of a file."""
    from math import prod

    from safetensors import safe_open

    with safe_open(path, framework="numpy") as tensors:
        return {name: prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 - not a dict


def _compact(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Numbers in each tensor of a compact checkpoint, and in each masked matrix those that are kept."""
    index = json.loads((folder / "compact.json").read_text(encoding="utf-8"))
    found: dict[str, int] = {}
    for file in index["files"]:
        found |= _sizes(folder / file)
    encoded = {name: facts["shape"][0] * facts["shape"][1] for name, facts in index["tensors"].items()}
    kept = {
        name.removesuffix(".weight"): found[f"{name}.dsee_values"]
        for name, facts in index["tensors"].items()
        if facts["mask"]
    }
    plain = {name: size for name, size in found.items() if not name.endswith((".dsee_bits", ".dsee_values"))}
    return plain | encoded, kept


def _kept(path: Path) -> dict[str, int]:
    """Of each mask how many weights it keeps."""
    import numpy as np
    from safetensors.numpy import load_file

    return {name: int(np.unpackbits(packed).sum()) for name, packed in load_file(path).items()}


def _masks(kept: dict[str, int], sizes: dict[str, int]) -> dict[str, Any]:
    """Masked matrices, their weights, and the share of zeros the masks ask for."""
    weights = sum(sizes.get(f"{name}.weight", 0) for name in kept)
    zeros = round(1 - sum(kept.values()) / weights, 6) if weights else None
    return {"matrices": len(kept), "weights": weights, "zeros": zeros}


def _text(folder: Path, facts: dict[str, Any]) -> str:
    from dsee.artifact.card import describe

    lines = [
        f"{folder}: {facts['kind']}, whole, written by {facts['written_by']}",
        f"size        {facts['bytes'] / 1e6:.1f} MB in {len(facts['files'])} files",
    ]
    if "parameters" in facts:
        lines.append(f"parameters  {facts['parameters']:,}")
    if "masks" in facts:
        masks = facts["masks"]
        # of an update without its base the weights are not here to be counted
        share = f"{masks['zeros']:.1%} of {masks['weights']:,} weights in " if masks["weights"] else "masks of "
        lines.append(f"zeros       {share}{masks['matrices']} matrices")
    if facts["structure"]:
        lines += [f"{unit:<11} {' '.join(map(str, sizes))}" for unit, sizes in facts["structure"].items()]
    lines += [f"{key:<11} {value}" for key, value in facts["facts"].items() if not isinstance(value, dict)]
    lines += [f"step {i:<6} {describe(step)}" for i, step in enumerate(facts["history"], 1)]
    lines += [f"file        {name} ({size:,} bytes)" for name, size in facts["files"].items()]
    return "\n".join(lines)
