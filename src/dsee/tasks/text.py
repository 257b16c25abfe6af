"""Text classification on one's own files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsee.errors import InputError, listed, nearest
from dsee.tasks.places import existing_file
from dsee.tasks.spec import DataSpec
from dsee.tasks.table import read_table, require_column

TEXT, PAIR, LABEL = "text", "text_pair", "label"


@dataclass(frozen=True)
class TextData:
    """Three disjoint parts with columns ``text``, perhaps ``text_pair``, and ``label`` (an index).

    Attributes:
        train: to learn from.
        validation: to choose the best epoch by.
        test: to report on.
        labels: class names by index.
        dropped: repeated texts that were left out on request.
    """

    train: Any
    validation: Any
    test: Any
    labels: list[str]
    dropped: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        """Sentences of each part, by name."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}


def load_text_data(spec: DataSpec, base: Path, seed: int) -> TextData:
    """Read, check and split the files of a task.

    Args:
        spec: the recipe's data section.
        base: folder that relative paths start from.
        seed: decides the split.

    Returns:
        The parts.

    Raises:
        InputError: anything wrong with a file, naming the file and the row.
    """
    parts = {"train": _rows(spec, spec.train, base)}
    for name in ("validation", "test"):
        reference = getattr(spec, name)
        if reference is not None:
            parts[name] = _rows(spec, reference, base)
    dropped = 0
    if spec.deduplicate:
        size = len(parts["train"][LABEL])
        parts["train"] = _unique(parts["train"])
        dropped = size - len(parts["train"][LABEL])
    labels = _label_names(spec, parts["train"][LABEL], base)
    indexed = {name: _index_labels(rows, labels, spec, getattr(spec, name), base) for name, rows in parts.items()}
    for name, share in (("test", spec.split.test), ("validation", spec.split.validation)):
        if name not in indexed:
            total = len(parts["train"][LABEL])
            indexed["train"], indexed[name] = _split(indexed["train"], round(share * total), seed, name)
    from datasets import Dataset

    ready = {name: Dataset.from_dict(rows) for name, rows in indexed.items()}
    return TextData(ready["train"], ready["validation"], ready["test"], labels, dropped)


Rows = dict[str, list[Any]]


def _rows(spec: DataSpec, reference: str, base: Path) -> Rows:
    """The wanted columns of one file, as lists, under our own names."""
    path = existing_file(reference, base)
    table = read_table(path)
    wanted = {TEXT: spec.text, LABEL: spec.label} | ({PAIR: spec.text_pair} if spec.text_pair else {})
    for key, column in [*wanted.items(), *((f"where.{c}", c) for c in spec.where)]:
        require_column(table, column, path, key)
    numbers: Any = range(len(table))
    if spec.where:
        conditions = {column: [str(v) for v in table[column]] for column in spec.where}
        numbers = [i for i in numbers if all(conditions[c][i] == str(v) for c, v in spec.where.items())]
        if not numbers:
            raise InputError(
                f"{path}: no row has {', '.join(f'{c}={v!r}' for c, v in spec.where.items())} (data.where)."
            )
    rows = {key: [column[i] for i in numbers] for key, column in ((k, list(table[c])) for k, c in wanted.items())}
    for key in rows:
        for number, value in zip(numbers, rows[key], strict=True):
            if value is None or (isinstance(value, str) and not value.strip()):
                raise InputError(f"{path}, row {number + 1}: column {wanted[key]!r} is empty.")
            if key != LABEL and not isinstance(value, str):
                raise InputError(
                    f"{path}, row {number + 1}: column {wanted[key]!r} holds {value!r}, which is not text (data.{key})."
                )
    return rows


def _unique(rows: Rows) -> Rows:
    seen: set[tuple[str, ...]] = set()
    keep = []
    for i, texts in enumerate(zip(rows[TEXT], rows.get(PAIR, rows[TEXT]), strict=True)):
        if texts not in seen:
            seen.add(texts)
            keep.append(i)
    return {key: [column[i] for i in keep] for key, column in rows.items()}


def _name(label: Any) -> str:
    """Labels compare by their text; 1 and 1.0 are the same label."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def _label_names(spec: DataSpec, column: list[Any], base: Path) -> list[str]:
    if spec.labels is not None:
        names = [str(label) for label in spec.labels]
        if len(set(names)) != len(names):
            raise InputError(f"data.labels lists a label twice: {listed(names)}.")
    else:
        counts = Counter(_name(label) for label in column)
        numeric = all(name.lstrip("-").isdigit() for name in counts)
        names = sorted(counts, key=int) if numeric else sorted(counts)
        if len(names) > 1000 and len(names) > len(column) // 2:
            raise InputError(f"data.label={spec.label!r}: {len(names)} different values look like text, not labels.")
    if len(names) < 2:
        raise InputError(f"{base / spec.train}: only one label ({names[0]!r}); a classifier needs at least two.")
    return names


def _index_labels(rows: Rows, names: list[str], spec: DataSpec, reference: str | None, base: Path) -> Rows:
    index = {name: i for i, name in enumerate(names)}
    found = []
    for number, value in enumerate(rows[LABEL]):
        name = _name(value)
        if name not in index:
            source = "in data.labels" if spec.labels is not None else "in the training file"
            raise InputError(
                f"{base / str(reference)}: label {name!r} (data row {number + 1}) is not {source}."
                f"{nearest(name, names)} Labels: {listed(names)}."
            )
        found.append(index[name])
    return rows | {LABEL: found}


def _split(rows: Rows, size: int, seed: int, name: str) -> tuple[Rows, Rows]:
    """Cut ``size`` rows off, each label in proportion."""
    from sklearn.model_selection import train_test_split

    try:
        kept, taken = train_test_split(range(len(rows[LABEL])), test_size=size, random_state=seed, stratify=rows[LABEL])
    except ValueError as error:
        raise InputError(
            f"{len(rows[LABEL])} training rows are too few to cut off {size} for {name} with every label in both "
            f"({error}). Give a file of its own as data.{name}, or more rows."
        ) from error
    return tuple({key: [column[i] for i in numbers] for key, column in rows.items()} for numbers in (kept, taken))  # type: ignore[return-value]  # two parts
