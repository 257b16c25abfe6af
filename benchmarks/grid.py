"""Accuracy of ways to tune, over tasks and seeds: a grid of runs that can be stopped and taken up again.

    python benchmarks/grid.py explore finalists            # runs what is missing, one JSON line for each finished run
    python benchmarks/grid.py explore --only sst2 seed=0   # only cells whose name holds all of these
    python benchmarks/grid.py --table                      # the tables, as Markdown
    python benchmarks/grid.py --table --into docs/results/update.md   # the same, into the page

The lists of cells are in grid_cells.py. One thread; run it twice with different --only to use two cores.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import time
import warnings
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

# this checkout's dsee, whatever is installed: hours of runs have to come from one and the same code
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import dsee
from grid_cells import LISTS
from grid_model import Cell

#: What a page's tables stand between.
MARKS = ("<!-- tables -->", "<!-- end of tables -->")
DATA = Path(__file__).parents[1] / "docs" / "results" / "data" / "update.jsonl"


def name_of(cell: Cell) -> str:
    """What distinguishes a cell: its task, method, seed, and every setting that is not the default."""
    shown = {f.name: getattr(cell, f.name) for f in fields(Cell) if f.name not in ("task", "method", "seed")}
    plain = asdict(Cell(cell.task))
    changed = [f"{key}={value}" for key, value in shown.items() if value != plain[key]]
    return " ".join([cell.task, cell.method, *changed, f"seed={cell.seed}"])


def rows(path: Path) -> list[dict[str, Any]]:
    """Finished runs; a last line cut short by a kill is no finished run."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def cell_of(row: dict[str, Any]) -> Cell:
    """The cell of a stored row; options younger than the row have their defaults."""
    return Cell(**row["cell"])


def append(path: Path, row: dict[str, Any]) -> None:
    """Add one line, whole or not at all, beside other processes that do the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        file.write(("" if not text or text.endswith("\n") else "\n") + json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def say(text: str) -> None:
    """One line of the log."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def save(model: Any, folder: Path) -> None:
    """Keep a tuned model as an artifact, for experiments that start from it."""
    from grid_data import tokenizer

    dsee.save(model, folder, tokenizer=tokenizer())


def work(cells: list[tuple[Cell, str]], path: Path, saved: Path | None) -> None:
    """Run what is missing, in order."""
    from grid_train import run

    for cell, keep in cells:
        name = name_of(cell)
        if name in {name_of(cell_of(row)) for row in rows(path)}:
            continue
        say(f"{name} ...")
        row, model = run(cell, lambda text: say(f"    {text}"))
        try:
            if saved and keep:
                save(model, saved / cell.task / keep / f"seed{cell.seed}")
        finally:
            # what training cost is not lost to a full disk
            append(path, row)
        say(f"    validation {row['validation']} test {row['test']} in {row['cpu_seconds']} s of CPU")


def insert(page: Path, text: str, marks: tuple[str, str] = MARKS) -> None:
    """Replace what stands between the two marks of a page."""
    before, first, rest = page.read_text(encoding="utf-8").partition(marks[0])
    _, last, after = rest.partition(marks[1])
    if not (first and last):
        sys.exit(f"{page}: no line {marks[0]} followed by {marks[1]}")
    page.write_text(f"{before}{first}\n\n{text}\n\n{last}{after}", encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", nargs="*", metavar="LIST", help=f"which cells: {', '.join(LISTS)}; default all")
    parser.add_argument("--only", nargs="+", default=[], help="only cells whose name holds all of these")
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    parser.add_argument("--into", type=Path, help="with --table: a page to put the tables into, between its marks")
    parser.add_argument("--data", type=Path, default=DATA, help="the JSON lines")
    parser.add_argument("--save", type=Path, help="keep the tuned models that grid_cells.py names, under this folder")
    options = parser.parse_args()
    unknown = sorted(set(options.lists) - set(LISTS))
    if unknown:
        sys.exit(f"no list is called {unknown[0]!r}; there are {', '.join(LISTS)}")
    if options.table:
        from grid_table import table

        printed = table([(cell_of(row), row) for row in rows(options.data)])
        insert(options.into, printed) if options.into else print(printed)
        return
    import torch
    import transformers

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    # found now rather than after the first run
    assert dsee.save
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    cells = [pair for each in options.lists or LISTS for pair in LISTS[each]]
    work([pair for pair in cells if all(part in name_of(pair[0]) for part in options.only)], options.data, options.save)


if __name__ == "__main__":
    main()
