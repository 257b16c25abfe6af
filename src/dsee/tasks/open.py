"""Where the rows of a task come from: files, a data set of the hub or one saved on disk, or GLUE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsee.errors import InputError, listed
from dsee.tasks.glue_tasks import GLUE, GlueTask
from dsee.tasks.places import existing_file, locate
from dsee.tasks.sources import Numbered, Source, open_source
from dsee.tasks.spec import DataSpec
from dsee.tasks.table import SUFFIXES, check_utf8, quiet_datasets

PARTS = ("train", "validation", "test")
#: Where the hub keeps GLUE.
HUB_GLUE = "nyu-mll/glue"


@dataclass(frozen=True)
class Sources:
    """All tables of a task.

    Attributes:
        spec: the recipe's data section, with columns and labels filled in where GLUE decides them.
        labelled: "train", perhaps "validation" and "test" -> table.
        also: ending of a figure's name -> further table to report on, such as "_mm" for MNLI's mismatched part.
        unlabelled: name of a file of predictions -> table.
        notes: what a report has to say.
    """

    spec: DataSpec
    labelled: dict[str, Source]
    also: dict[str, Source] = field(default_factory=dict)
    unlabelled: dict[str, Source] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def open_sources(spec: DataSpec, base: Path, *, judged: bool = True) -> Sources:
    """Open everything that a recipe names.

    Args:
        spec: the recipe's data section.
        base: the recipe's folder.
        judged: whether rows have labels.

    Raises:
        InputError: something is not there, or cannot be read.
    """
    if spec.glue is not None:
        return _glue(spec, GLUE[spec.glue], base)
    if spec.name is not None:
        return _named(spec, base, judged)
    named = {part: str(getattr(spec, part)) for part in PARTS if getattr(spec, part) is not None}
    return Sources(spec, {part: open_file(spec, path) for part, path in files_of(named, spec, base).items()})


def files_of(named: dict[str, str], spec: DataSpec, base: Path) -> dict[str, Path]:
    """Find files.

    Args:
        named: part -> what the recipe calls its file.
        spec: the recipe's data section, whose ``dir`` they start from.
        base: the recipe's folder.

    Raises:
        InputError: one is not there, or empty.
    """
    start = locate(spec.dir, base) if spec.dir else base
    return {part: existing_file(reference, start) for part, reference in named.items()}


def data_files(spec: DataSpec, base: Path) -> list[Path]:
    """Return the files and folders on this machine that a task's rows come from.

    Args:
        spec: the recipe's data section.
        base: the recipe's folder.

    Raises:
        InputError: one is not there.
    """
    if spec.glue is not None:
        return [] if spec.dir is None else list(_glue_files(spec, GLUE[spec.glue], base).values())
    if spec.name is not None:
        folder = locate(spec.name, base)
        return [folder] if folder.is_dir() else []
    named = {part: str(getattr(spec, part)) for part in PARTS if getattr(spec, part) is not None}
    return list(files_of(named, spec, base).values())


def open_file(spec: DataSpec, path: Path, *, quotes: bool = True) -> Source:
    """Open one table.

    Args:
        spec: the recipe's data section.
        path: the file.
        quotes: whether quotation marks may enclose cells at all.

    Raises:
        InputError: it cannot be read.
    """
    if SUFFIXES.get(path.suffix.lower(), "parquet") != "parquet" and not spec.streaming:
        # a stream is not read through before it is used; there the row is named instead
        check_utf8(path)
    return open_source(path, quotes=quotes and spec.quotes)


def _splits(task: GlueTask) -> dict[str, list[str]]:
    """GLUE's names of the splits, by what they are for."""
    endings = [ending for ending, _ in task.parts]
    return {
        "train": ["train"],
        "validation": [f"validation{ending}" for ending in endings],
        "test": [f"test{ending}" for ending in endings],
    }


def _glue(spec: DataSpec, task: GlueTask, base: Path) -> Sources:
    splits = _splits(task)
    if spec.dir is not None:
        files = _glue_files(spec, task, base)
        # GLUE's own TSV files are full of lone quotation marks
        tables = {split: open_file(spec, path, quotes=path.suffix.lower() != ".tsv") for split, path in files.items()}
    else:
        tables = _from_hub(HUB_GLUE, spec.glue, f"GLUE's {spec.glue}")
    missing = [split for split in (*splits["train"], *splits["validation"]) if split not in tables]
    if missing:
        raise InputError(f"GLUE's {spec.glue} has no split {missing[0]!r} here. There are: {listed(tables)}.")
    filled = spec.model_copy(
        update={
            "text": task.text,
            "text_pair": task.pair,
            "labels": list(task.labels) or None,
            "label_map": {str(i): name for i, name in enumerate(task.labels)},
        }
    )
    reported, *more = splits["validation"]
    tests = dict(zip(splits["test"], (task.submission + ending for _, ending in task.parts), strict=True))
    left = [split for split in tests if split not in tables]
    return Sources(
        filled,
        {"train": tables["train"], "test": tables[reported]},
        also={split.replace("validation_mismatched", "_mm"): tables[split] for split in more},
        unlabelled={name: tables[split] for split, name in tests.items() if split in tables},
        notes=[f"no split {split!r}: no file of predictions for GLUE's server" for split in left],
    )


def _glue_files(spec: DataSpec, task: GlueTask, base: Path) -> dict[str, Path]:
    """The files of a folder that bear the names of GLUE's splits; its test splits may be missing."""
    top = locate(str(spec.dir), base)
    folder = top / str(spec.glue) if (top / str(spec.glue)).is_dir() else top
    if not folder.is_dir():
        raise InputError(f"data.dir: {folder} is no folder.")
    splits = _splits(task)
    found: dict[str, Path] = {}
    for split in (name for names in splits.values() for name in names):
        files = sorted(path for path in folder.glob(f"{split}.*") if path.suffix.lower() in SUFFIXES)
        if len(files) > 1:
            raise InputError(f"{folder} holds {files[0].name} and {files[1].name}: which is the split {split!r}?")
        if files:
            found[split] = existing_file(files[0].name, folder)
    needed = [*splits["train"], *splits["validation"]]
    if any(split not in found for split in needed):
        missing = next(split for split in needed if split not in found)
        held = [path.name for path in sorted(folder.iterdir())]
        raise InputError(
            f"{folder} holds no {missing}.parquet, .csv, .tsv or .jsonl, the split {missing!r} of GLUE's {spec.glue}. "
            f"It holds: {listed(held) or 'nothing'}."
        )
    return found


def _named(spec: DataSpec, base: Path, judged: bool) -> Sources:
    """A data set of the hub, or one that ``datasets`` saved in a folder."""
    folder = locate(str(spec.name), base)
    if folder.is_dir():
        tables = _from_disk(folder)
    else:
        tables = _from_hub(str(spec.name), spec.config, f"data.name: {spec.name}", streaming=spec.streaming)
    labelled, notes = {}, []
    for part in PARTS:
        wanted = getattr(spec, part)
        split = wanted or part
        if split not in tables and (wanted is not None or part == "train"):
            raise InputError(f"data.{part}: {spec.name} has no split {split!r}. It has: {listed(tables)}.")
        if split not in tables:
            continue
        if judged and wanted is None and part == "test" and _without_labels(tables[split], spec):
            notes.append(f"the split 'test' of {spec.name} has no labels, so it is not reported on")
            continue
        labelled[part] = tables[split]
    return Sources(spec, labelled, notes=notes)


def _without_labels(table: Source, spec: DataSpec) -> bool:
    """Whether the first row's label is -1 or nothing, which is how a public set keeps its test labels to itself."""
    if isinstance(spec.label, list):
        return False
    first = next(table.rows(), (0, {}))[1]
    return isinstance(first, dict) and first.get(spec.label) in (None, -1, -1.0)


def _from_disk(folder: Path) -> dict[str, Source]:
    from datasets import DatasetDict, load_from_disk

    try:
        with quiet_datasets():
            found = load_from_disk(str(folder))
    except Exception as error:
        # datasets raises anything on folders that make no sense
        raise InputError(f"data.name: {folder} is no data set that datasets saved ({error}).") from error
    tables = found if isinstance(found, DatasetDict) else {"train": found}
    return {split: _table(f"{folder}, split {split!r}", table) for split, table in tables.items()}


def _from_hub(name: str, config: str | None, what: str, *, streaming: bool = False) -> dict[str, Source]:
    from datasets import load_dataset

    try:
        with quiet_datasets():
            found = load_dataset(name, config, streaming=streaming)
    except Exception as error:
        # a hub that cannot be reached shows as one of a dozen classes of four libraries
        reason = str(error).strip().splitlines()
        raise InputError(
            f"{what} could not be loaded from the hub ({reason[0] if reason else type(error).__name__}). With the "
            "files at hand, name their folder: dsee run RECIPE --data DIR (data.dir in the recipe)."
        ) from error
    return {split: _table(f"{name}, split {split!r}", table) for split, table in found.items()}


def _table(name: str, table: Any) -> Source:
    """A table of ``datasets``: classes become their names, and -1 becomes no label."""
    names: dict[str, list[str]] = {}
    # a stream may not know its columns before it flows
    columns = list(table.features or next(iter(table), {}))
    for column, feature in dict(table.features or {}).items():
        inner: Any = getattr(feature, "feature", feature)
        if hasattr(inner, "names"):
            names[column] = list(inner.names)

    def named(column: str, value: Any) -> Any:
        if isinstance(value, list):
            return [named(column, each) for each in value]
        known = names.get(column)
        return value if known is None or not isinstance(value, int) else known[value] if value >= 0 else None

    def rows() -> Iterator[Numbered]:
        for number, values in enumerate(table, 1):
            yield number, {column: named(column, value) for column, value in values.items()}

    return Source(name, "row", columns, rows)
