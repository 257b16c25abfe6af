"""Reading the files of a task of writing."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsee.errors import InputError, listed, nearest
from dsee.tasks.generation.spec import GenerationSpec
from dsee.tasks.places import existing_file, locate
from dsee.tasks.spec import DataSpec
from dsee.tasks.table import read_table

PARTS = ("train", "validation", "test")


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


@dataclass(frozen=True)
class GenerationData:
    """Three disjoint parts; no prompt of one is in another that was cut off the same file.

    Attributes:
        train: to learn from.
        validation: to choose the best epoch by.
        test: to report on.
        dropped: repeated examples that were left out on request.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    dropped: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of each part, by name."""
        return {name: len(getattr(self, name)) for name in PARTS}


def load_generation_data(data: DataSpec, spec: GenerationSpec, kind: str, base: Path, seed: int) -> GenerationData:
    """Read, check and split the files of a task.

    Args:
        data: the recipe's data section; of its columns only ``text``, for plain text.
        spec: the recipe's section for writing.
        kind: one of :data:`dsee.tasks.generation.KINDS`.
        base: folder that relative paths start from.
        seed: decides the split.

    Returns:
        The parts.

    Raises:
        InputError: anything wrong with a file, naming the file and the row.
    """
    base = locate(data.dir, base) if data.dir else base
    read = {name: _read(data, spec, kind, str(getattr(data, name)), base) for name in PARTS if getattr(data, name)}
    dropped = 0
    if data.deduplicate:
        unique = list({(e.prompt, e.target): e for e in reversed(read["train"])}.values())[::-1]
        dropped, read["train"] = len(read["train"]) - len(unique), unique
    whole = read["train"]
    for name, share in (("test", data.split.test), ("validation", data.split.validation)):
        if name not in read:
            read["train"], read[name] = _cut_off(read["train"], round(share * len(whole)), seed, name, kind)
    for name in PARTS:
        if not any(e.target.strip() for e in read[name]):
            raise InputError(f"data.{name}: there is no text in it.")
    return GenerationData(read["train"], read["validation"], read["test"], dropped)


def _read(data: DataSpec, spec: GenerationSpec, kind: str, reference: str, base: Path) -> list[Example]:
    path = existing_file(reference, base)
    if path.suffix.lower() == ".txt" and kind == "language-modelling":
        return _lines(path)
    table = read_table(path)
    wanted = _columns(data, spec, kind)
    for key, names in [*wanted.items(), *((f"data.where.{column}", [column]) for column in data.where)]:
        for name in names:
            _require(table.column_names, name, path, key)
    columns = {name: list(table[name]) for names in [*wanted.values(), list(data.where)] for name in names}
    numbers = [i for i in range(len(table)) if all(str(columns[name][i]) == str(v) for name, v in data.where.items())]
    if not numbers:
        said = ", ".join(f"{name}={value!r}" for name, value in data.where.items())
        raise InputError(f"{path}: no row has {said} (data.where).")
    return [_example(columns, spec, wanted, kind, i, f"{path}, row {i + 1}") for i in numbers]


def _require(names: list[str], name: str, path: Path, key: str) -> None:
    if name not in names:
        raise InputError(f"{path} has no column {name!r} ({key}).{nearest(name, names)} Its columns: {listed(names)}.")


def _columns(data: DataSpec, spec: GenerationSpec, kind: str) -> dict[str, list[str]]:
    """Columns by the key of the recipe that names them, in the order prompt, target, references."""
    if kind == "language-modelling":
        return {"data.text": [data.text]}
    if kind == "instruction":
        return {"generation.prompt": [spec.prompt], "generation.response": [spec.response]}
    source = [spec.source] if isinstance(spec.source, str) else spec.source
    found = {"generation.source": source, "generation.target": [spec.target]}
    return found | ({"generation.references": [spec.references]} if spec.references else {})


def _example(
    columns: dict[str, list[Any]], spec: GenerationSpec, wanted: dict[str, list[str]], kind: str, i: int, place: str
) -> Example:
    def text(name: str) -> str:
        value = columns[name][i]
        if value is None or (isinstance(value, str) and not value.strip()):
            # an empty line of plain text ends a paragraph, and is part of it
            if kind == "language-modelling":
                return value or ""
            raise InputError(f"{place}: column {name!r} is empty.")
        if not isinstance(value, str):
            raise InputError(f"{place}: column {name!r} holds {value!r}, which is not text.")
        return value

    if kind == "language-modelling":
        return Example("", text(wanted["data.text"][0]), (), place)
    if kind == "instruction":
        answer = text(spec.response)
        return Example(text(spec.prompt), answer, (answer,), place)
    target = text(spec.target)
    source = text(spec.source) if isinstance(spec.source, str) else _linearised(columns, spec.source, i, place)
    references = columns[spec.references][i] if spec.references else None
    return Example(source, target, _references(references, target, place, spec.references), place)


def _linearised(columns: dict[str, list[Any]], names: list[str], i: int, place: str) -> str:
    """Data in columns as LoRA's E2E files have it: ``name : value | name : value``, empty ones left out."""
    pairs = [(name, columns[name][i]) for name in names]
    found = " | ".join(f"{name} : {value}" for name, value in pairs if value is not None and str(value).strip())
    if not found:
        raise InputError(f"{place}: all of its columns {', '.join(names)} are empty (generation.source).")
    return found


def _references(value: Any, target: str, place: str, column: str | None) -> tuple[str, ...]:
    if value is None or value in ("", []):
        return (target,)
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(
            f"{place}: column {column!r} holds {value!r}, which is no list of texts (generation.references)."
        )
    return tuple(texts)


def _lines(path: Path) -> list[Example]:
    """A plain text file: its lines, with their ends."""
    from dsee.tasks.table import check_utf8

    check_utf8(path)
    with path.open(encoding="utf-8", newline=None) as stream:
        return [Example("", line, (), f"{path}, line {number}") for number, line in enumerate(stream, 1)]


def _cut_off(
    examples: list[Example], size: int, seed: int, name: str, kind: str
) -> tuple[list[Example], list[Example]]:
    """Cut about ``size`` examples off: whole prompts by lot, or the end of a plain text."""
    if kind == "language-modelling":
        kept, taken = examples[: len(examples) - size], examples[len(examples) - size :]
    else:
        prompts = sorted({e.prompt for e in examples})
        counts = dict.fromkeys(prompts, 0)
        for e in examples:
            counts[e.prompt] += 1
        random.Random(f"{seed} {name}").shuffle(prompts)  # noqa: S311 - a split, no secret
        chosen: set[str] = set()
        total = 0
        for prompt in prompts:
            if total >= size:
                break
            chosen.add(prompt)
            total += counts[prompt]
        kept = [e for e in examples if e.prompt not in chosen]
        taken = [e for e in examples if e.prompt in chosen]
    if not kept or not taken:
        raise InputError(
            f"{len(examples)} training rows are too few to cut off {size} for {name}. Give a file of its own as "
            f"data.{name}, or more rows."
        )
    return kept, taken
