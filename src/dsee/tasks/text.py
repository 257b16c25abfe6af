"""The parts of a task on texts: read, checked, split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsee.errors import InputError, listed
from dsee.tasks.bad_rows import BadRows, RowError
from dsee.tasks.open import open_sources
from dsee.tasks.rows import LABEL, LINE, PAIR, SOURCE, TEXT, Label, examples, indexer
from dsee.tasks.sources import Source
from dsee.tasks.spec import DataSpec
from dsee.tasks.split import Rows, cut_off, pick, unique

__all__ = ["LABEL", "PAIR", "TEXT", "Stream", "TextData", "load_text_data"]


@dataclass(frozen=True)
class Stream:
    """A training part that is read anew in every epoch.

    Attributes:
        spec: the recipe's data section.
        source: the table.
        convert: label as read -> what a model learns.
    """

    spec: DataSpec
    source: Source
    convert: Callable[[Label], Any]


@dataclass(frozen=True)
class TextData:
    """Three disjoint parts with columns ``text``, perhaps ``text_pair``, and ``label``.

    A label is an index, a number, or a 0/1 for each label; ``source`` and ``line`` say where a row comes from.

    Attributes:
        train: to learn from; a :class:`Stream` if the recipe wants one.
        validation: to choose the best epoch by.
        test: to report on.
        labels: class names by index; of a regression the name of its number.
        dropped: repeated texts that were left out on request.
        kind: what a label is.
        also: ending of a figure's name -> further part to report on.
        unlabelled: name of a file of predictions -> part without labels.
        places: by ``source``: from a line to its place, for messages.
        bad: rows that were left out, as far as that is tolerated.
        notes: what a report has to say of the data.
    """

    train: Any
    validation: Any
    test: Any
    labels: list[str]
    dropped: int = 0
    kind: str = "classification"
    also: dict[str, Any] = field(default_factory=dict)
    unlabelled: dict[str, Any] = field(default_factory=dict)
    places: list[Callable[[int], str]] = field(default_factory=list)
    bad: BadRows = field(default_factory=BadRows)
    notes: list[str] = field(default_factory=list)

    @property
    def sizes(self) -> dict[str, int]:
        """Sentences of each part, by name; nobody knows how many a stream has."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: len(part) for name, part in parts.items() if not isinstance(part, Stream)}


def load_text_data(spec: DataSpec, base: Path, seed: int) -> TextData:
    """Read, check and split the files of a task.

    Args:
        spec: the recipe's data section.
        base: folder that relative paths start from.
        seed: decides the split.

    Returns:
        The parts.

    Raises:
        InputError: anything wrong with a file, or more bad rows than are tolerated, naming file and line.
    """
    opened = open_sources(spec, base)
    reader = _Reader(opened.spec)
    labelled = opened.labelled if not spec.streaming else {k: v for k, v in opened.labelled.items() if k != "train"}
    parts = {name: reader.read(source) for name, source in labelled.items()}
    also = {name: reader.read(source) for name, source in opened.also.items()}
    # a file of predictions has a line for every row, so none of these can be left out
    strict = BadRows()
    unlabelled = {name: reader.read(source, strict, labelled=False) for name, source in opened.unlabelled.items()}
    strict.check()
    notes, dropped = list(opened.notes), 0
    if spec.deduplicate:
        size = len(parts["train"][LABEL])
        parts["train"] = unique(parts["train"])
        dropped = size - len(parts["train"][LABEL])
        notes.append(f"left out {dropped} repeated text(s) of the training part")
    try:
        names = _label_names(opened.spec, parts.get("train"), opened.labelled["train"])
    except InputError:
        # rows that cannot be read are the likelier reason
        reader.bad.check()
        raise
    reader.names(names)
    parts, also = ({k: reader.indexed(rows) for k, rows in found.items()} for found in (parts, also))
    reader.bad.check()
    _require_rows(parts | also | unlabelled)
    _cut(parts, spec, seed)
    from datasets import Dataset

    ready = {name: Dataset.from_dict(rows) for name, rows in parts.items()}
    if spec.streaming:
        ready["train"] = Stream(opened.spec, opened.labelled["train"], reader.convert)
    return TextData(
        ready["train"],
        ready["validation"],
        ready["test"],
        names,
        dropped,
        str(spec.kind),
        {name: Dataset.from_dict(rows) for name, rows in also.items()},
        {name: Dataset.from_dict(rows) for name, rows in unlabelled.items()},
        reader.places,
        reader.bad,
        notes,
    )


def _cut(parts: dict[str, Rows], spec: DataSpec, seed: int) -> None:
    """Cut what has no file of its own off the training rows."""
    total = len(parts["train"][LABEL]) if "train" in parts else 0
    for name, share in (("test", spec.split.test), ("validation", spec.split.validation)):
        if name not in parts:
            stratify = spec.kind == "classification"
            parts["train"], parts[name] = cut_off(parts["train"], round(share * total), seed, name, stratify=stratify)


class _Reader:
    """Reads tables into columns and remembers where each row came from."""

    def __init__(self, spec: DataSpec) -> None:
        self.spec, self.bad = spec, BadRows(spec.max_bad_rows)
        self.places: list[Callable[[int], str]] = []
        self.convert: Callable[[Label], Any] = _no_names

    def read(self, source: Source, bad: BadRows | None = None, *, labelled: bool = True) -> Rows:
        rows: Rows = {key: [] for key in (TEXT, *([PAIR] if self.spec.text_pair else []), LABEL, SOURCE, LINE)}
        for example in examples(self.spec, source, self.bad if bad is None else bad, labelled=labelled):
            rows[TEXT].append(example.texts[0])
            if self.spec.text_pair:
                rows[PAIR].append(example.texts[1])
            rows[LABEL].append(example.label)
            rows[SOURCE].append(len(self.places))
            rows[LINE].append(example.line)
        self.places.append(source.place)
        if not rows[TEXT] and self.spec.where and not self.bad.counts:
            asked = ", ".join(f"{column}={value!r}" for column, value in self.spec.where.items())
            raise InputError(f"{source.name}: no row has {asked} (data.where).")
        _refuse_numbers(self.spec, source, rows)
        if not labelled:
            del rows[LABEL]
        return rows

    def names(self, names: list[str]) -> None:
        listed_in = self.spec.labels is not None
        known_from = "in data.labels" if listed_in else "in the training file"
        self.convert = indexer(self.spec, names, known_from)

    def indexed(self, rows: Rows) -> Rows:
        labels: list[Any] = []
        keep: list[int] = []
        for i, label in enumerate(rows[LABEL]):
            try:
                labels.append(self.convert(label))
                keep.append(i)
            except RowError as fault:
                self.bad.add(self.places[rows[SOURCE][i]](rows[LINE][i]), fault)
        return (rows if len(keep) == len(labels) == len(rows[LABEL]) else pick(rows, keep)) | {LABEL: labels}


def _no_names(label: Label) -> Any:
    raise AssertionError(f"labels are not known yet: {label!r}")


def _refuse_numbers(spec: DataSpec, source: Source, rows: Rows) -> None:
    """A CSV file knows no types, so the wrong column shows only as a whole."""
    if not source.name.lower().endswith((".csv", ".tsv")):
        return
    for key, column in ((TEXT, spec.text), (PAIR, spec.text_pair)):
        if key in rows and rows[key] and all(_is_number(text) for text in rows[key]):
            raise InputError(
                f"{source.place(rows[LINE][0])}: column {column!r} holds {rows[key][0]}, which is not text, and so it "
                f"is in all rows (data.{key})."
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _require_rows(parts: dict[str, Rows]) -> None:
    empty = [name for name, rows in parts.items() if not rows[TEXT]]
    if empty:
        raise InputError(f"data.{empty[0]}: no row is left.")


def _refuse_fractions(spec: DataSpec, names: list[str], source: Source) -> None:
    """Nobody has classes by the dozen that are numbers between whole ones."""
    if len(names) <= 20 or spec.kind != "classification" or not all(_is_number(name) for name in names):
        return
    if any(not float(name).is_integer() for name in names):
        raise InputError(
            f"{source.name}: column {spec.label!r} holds {len(names)} different numbers, such as {names[0]}. "
            "If a number is to be predicted, set data.kind: regression; if these are classes, list them as data.labels."
        )


def _label_names(spec: DataSpec, train: Rows | None, source: Source) -> list[str]:
    if spec.kind == "regression":
        return ["score"]
    if isinstance(spec.label, list):
        return list(spec.label)
    if spec.labels is not None:
        names = [str(label) for label in spec.labels]
        if len(set(names)) != len(names):
            raise InputError(f"data.labels lists a label twice: {listed(names)}.")
    else:
        if train is None:
            raise InputError("data.streaming: the labels are not known before the end; list them under labels.")
        column = train[LABEL]
        known = {name for label in column for name in (label if isinstance(label, list) else [label])}
        numeric = all(name.lstrip("-").isdigit() for name in known)
        names = sorted(known, key=int) if numeric else sorted(known)
        if len(names) > 1000 and len(names) > len(column) // 2:
            raise InputError(f"data.label={spec.label!r}: {len(names)} different values look like text, not labels.")
        _refuse_fractions(spec, names, source)
    if not names:
        raise InputError(f"{source.name}: no row has a label.")
    if spec.kind == "classification" and len(names) < 2:
        raise InputError(f"{source.name}: only one label ({names[0]!r}); a classifier needs at least two.")
    return names
