"""From the rows of a table to examples of what is to be written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsee.tasks.bad_rows import BadRows, RowError
from dsee.tasks.generation import official
from dsee.tasks.generation.spec import GenerationSpec
from dsee.tasks.open import PARTS, files_of, open_file, open_sources
from dsee.tasks.rows import matches, text_in
from dsee.tasks.sources import Numbered, Source, Values
from dsee.tasks.spec import DataSpec
from dsee.tasks.table import check_utf8

#: Key of the recipe -> columns.
Columns = dict[str, list[str]]


@dataclass(frozen=True)
class Example:
    """One thing to learn.

    Attributes:
        prompt: what is given; empty in plain text.
        target: what is to be written.
        references: texts that count as right, the target among them or alone.
        place: file and row, for messages.
    """

    prompt: str
    target: str
    references: tuple[str, ...]
    place: str


def open_parts(data: DataSpec, spec: GenerationSpec, kind: str, base: Path) -> dict[str, Source]:
    """Open the tables of a task of writing, by the part.

    Args:
        data: the recipe's data section.
        spec: the recipe's section for writing.
        kind: one of :data:`dsee.tasks.generation.KINDS`.
        base: the recipe's folder.

    Raises:
        InputError: something is not there, or cannot be read.
    """
    if data.name is not None:
        return open_sources(data, base, judged=False).labelled
    named = {part: str(getattr(data, part)) for part in PARTS if getattr(data, part) is not None}
    return {part: _open(data, spec, kind, path) for part, path in files_of(named, data, base).items()}


def _open(data: DataSpec, spec: GenerationSpec, kind: str, path: Path) -> Source:
    if kind == "language-modelling" and path.suffix.lower() == ".txt":
        if not data.streaming:
            check_utf8(path)
        return Source(str(path), "line", [data.text], lambda: _lines(path, data.text))
    if spec.format != "table":
        return official.open_official(path, spec.format, quotes=data.quotes)
    return open_file(data, path)


def _lines(path: Path, column: str) -> Iterator[Numbered]:
    """A plain text file: its lines, with their ends."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline=None) as stream:
        for number, line in enumerate(stream, 1):
            yield number, {column: line}


def columns_of(data: DataSpec, spec: GenerationSpec, kind: str) -> Columns:
    """Return the columns that a task reads, by the key of the recipe that names them.

    Args:
        data: the recipe's data section.
        spec: the recipe's section for writing.
        kind: one of :data:`dsee.tasks.generation.KINDS`.
    """
    if kind == "language-modelling":
        return {"data.text": [data.text]}
    if kind == "instruction":
        return {"generation.prompt": [spec.prompt], "generation.response": [spec.response]}
    source = [spec.source] if isinstance(spec.source, str) else spec.source
    found = {"generation.source": source, "generation.target": [spec.target]}
    return found | ({"generation.references": [spec.references]} if spec.references else {})


def examples(data: DataSpec, spec: GenerationSpec, kind: str, source: Source, bad: BadRows) -> Iterator[Example]:
    """Read a table row by row; what cannot be used is noted and left out.

    Args:
        data: the recipe's data section.
        spec: the recipe's section for writing.
        kind: one of :data:`dsee.tasks.generation.KINDS`.
        source: the table.
        bad: takes what cannot be used.

    Raises:
        InputError: a column that the recipe names does not exist.
    """
    where = {f"data.where.{column}": [column] for column in data.where}
    for key, names in (columns_of(data, spec, kind) | where).items():
        for name in names:
            source.require(name, key)
    for number, values in source.rows():
        place = source.place(number)
        try:
            if isinstance(values, RowError):
                raise values
            if matches(data, values):
                yield replace(_example(data, spec, kind, values), place=place)
        except RowError as fault:
            bad.add(place, fault)


def _example(data: DataSpec, spec: GenerationSpec, kind: str, values: Values) -> Example:
    if kind == "language-modelling":
        # an empty line of plain text ends a paragraph, and is part of it
        return Example("", text_in(values, data.text, blank=True), (), "")
    if kind == "instruction":
        answer = text_in(values, spec.response)
        return Example(text_in(values, spec.prompt), answer, (answer,), "")
    target = text_in(values, spec.target)
    source = text_in(values, spec.source) if isinstance(spec.source, str) else _linearised(values, spec.source)
    references = values.get(spec.references) if spec.references else None
    return Example(source, target, _references(references, target, spec.references), "")


def _linearised(values: Values, names: list[str]) -> str:
    """Data in columns as LoRA's E2E files have it: ``name : value | name : value``, empty ones left out."""
    pairs = [(name, values.get(name)) for name in names]
    found = " | ".join(f"{name} : {value}" for name, value in pairs if value is not None and str(value).strip())
    if not found:
        raise RowError("missing text", f"all of its columns {', '.join(names)} are empty (generation.source).")
    return found


def _references(value: Any, target: str, column: str | None) -> tuple[str, ...]:
    if value is None or value in ("", []):
        return (target,)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        reason = f"column {column!r} holds {value!r:.60}, which is no list of texts (generation.references)."
        raise RowError("wrong type", reason)
    return tuple(texts)
