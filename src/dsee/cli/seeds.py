"""Several seeds of one recipe: a folder for each, and a table of means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dsee.errors import InputError
from dsee.processes import first

if TYPE_CHECKING:
    from dsee.cli.terminal import Terminal
    from dsee.report.seeds import AnyRow
    from dsee.training import Recipe

#: Files beside the seeds' folders.
FILES = {"seeds.json", "seeds.md"}


def parse_seeds(text: str) -> list[int]:
    """Turn "0,1,2" into numbers.

    Args:
        text: what the user wrote; spaces do as well as commas.

    Raises:
        InputError: no numbers, or one of them twice.
    """
    words = text.replace(",", " ").split()
    if not words or not all(word.isascii() and word.isdigit() for word in words):
        raise InputError(f"--seeds {text!r}: give whole numbers from 0, such as --seeds 0,1,2.")
    seeds = [int(word) for word in words]
    if twice := [seed for seed in dict.fromkeys(seeds) if seeds.count(seed) > 1]:
        raise InputError(f"--seeds {text!r}: {twice[0]} is there twice.")
    return seeds


def run_seeds(
    recipe: Recipe,
    seeds: list[int],
    target: Path,
    terminal: Terminal,
    run_one: Callable[[Recipe, Path], list[AnyRow]],
) -> None:
    """Run a recipe once for each seed, those that an earlier run finished excepted, and write what they come to.

    Args:
        recipe: the recipe.
        seeds: in the place of its seed.
        target: folder for all of them.
        terminal: where to say so.
        run_one: carries out a recipe in a folder and returns the rows of its report.

    Raises:
        InputError: the folder holds other things.
    """
    from dsee.report.seeds import seeds_table, write_seeds

    first(lambda: claim(target))
    found = {}
    for number, seed in enumerate(seeds, 1):
        terminal.say(f"seed {seed} ({number} of {len(seeds)})")
        found[seed] = run_one(recipe.model_copy(update={"seed": seed}), target / f"seed-{seed}")

    def write() -> None:
        header, body = seeds_table(write_seeds(target, found, recipe))
        terminal.cells(header, body).print(f"written to {target}", highlight=False)

    first(write)


def claim(target: Path) -> None:
    """Refuse a folder that holds something else.

    Args:
        target: the folder for all seeds.

    Raises:
        InputError: it is a file, or not ours.
    """
    if target.is_file():
        raise InputError(f"output: {target} is a file. Choose a folder.")
    names = {entry.name for entry in target.iterdir() if not entry.name.startswith(".")} if target.is_dir() else set()
    other = sorted(name for name in names - FILES if not name.removeprefix("seed-").isdigit())
    if other:
        raise InputError(f"output: {target} holds other things than seeds ({other[0]}, ...). Choose another folder.")
