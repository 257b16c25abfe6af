"""From a row as it stands in a file to texts and a label."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dsee.errors import listed, nearest
from dsee.tasks.bad_rows import BadRows, RowError
from dsee.tasks.sources import Source, Values
from dsee.tasks.spec import DataSpec

TEXT, PAIR, LABEL = "text", "text_pair", "label"
#: Where a row comes from: which source, and which line of it.
SOURCE, LINE = "source", "line"

_WHOLE = re.compile(r"[+-]?\d+\.0+")
_YES, _NO = {"1", "true", "yes"}, {"0", "false", "no", ""}

#: A class name, a number, or the names of several labels.
Label = str | float | list[str]


@dataclass(frozen=True)
class Example:
    """One row that can be used.

    Attributes:
        line: its line or row.
        texts: one sentence or two.
        label: as read, not yet an index; None where labels were not asked for.
    """

    line: int
    texts: tuple[str, ...]
    label: Any


def wanted_columns(spec: DataSpec, *, labelled: bool = True) -> list[tuple[str, str]]:
    """Return (key of the recipe, column) for all columns that a recipe names.

    Args:
        spec: the recipe's data section.
        labelled: whether the label is needed.
    """
    labels = spec.label if isinstance(spec.label, list) else [spec.label]
    columns = [("data.text", spec.text)]
    columns += [("data.text_pair", spec.text_pair)] if spec.text_pair else []
    columns += [("data.label", column) for column in labels] if labelled else []
    return columns + [(f"data.where.{column}", column) for column in spec.where]


def examples(spec: DataSpec, source: Source, bad: BadRows, *, labelled: bool = True) -> Iterator[Example]:
    """Read a table row by row; what cannot be used is noted and left out.

    Args:
        spec: the recipe's data section.
        source: the table.
        bad: takes what cannot be used.
        labelled: whether the label is needed.

    Raises:
        InputError: a column that the recipe names does not exist.
    """
    for key, column in wanted_columns(spec, labelled=labelled):
        source.require(column, key)
    for line, values in source.rows():
        try:
            if isinstance(values, RowError):
                raise values
            if not matches(spec, values):
                continue
            texts = tuple(text_in(values, column) for column in (spec.text, spec.text_pair) if column)
            yield Example(line, texts, read_label(spec, values) if labelled else None)
        except RowError as fault:
            bad.add(source.place(line), fault)


def matches(spec: DataSpec, values: Values) -> bool:
    """Return whether a row is one of those that a recipe asks for.

    Args:
        spec: the recipe's data section.
        values: the row.
    """
    return all(_name(values.get(column)) == str(value) for column, value in spec.where.items())


def text_in(values: Values, column: str, *, blank: bool = False) -> str:
    """Return the text in a column of a row.

    Args:
        values: the row.
        column: its name.
        blank: whether there may be none, or nothing but blanks.

    Raises:
        RowError: it is empty, or no text.
    """
    value = values.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        if blank:
            return value or ""
        raise RowError("missing text", f"column {column!r} is empty.")
    if not isinstance(value, str):
        raise RowError("wrong type", f"column {column!r} holds {value!r:.60}, which is not text.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # how a byte looks that was no UTF-8, see open_source
        byte = ord(value[error.start]) & 0xFF
        raise RowError("unreadable", f"not UTF-8 (byte 0x{byte:02x}) in column {column!r}.") from error
    return value


def read_label(spec: DataSpec, values: Values) -> Label:
    """Return what a row's label column, or columns, say.

    Args:
        spec: the recipe's data section.
        values: the row.

    Raises:
        RowError: no label, or one of the wrong type.
    """
    if isinstance(spec.label, list):
        return [column for column in spec.label if _is_given(values.get(column), column)]
    value = values.get(spec.label)
    if spec.kind == "multi-label":
        return _several(spec, value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RowError("missing label", f"column {spec.label!r} is empty.")
    if spec.kind == "regression":
        return _number(value, spec.label)
    if isinstance(value, (list, dict)):
        raise RowError("wrong type", f"column {spec.label!r} holds {value!r:.60}, which is not one label.")
    return _mapped(spec, value)


def _number(value: Any, column: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise RowError("wrong type", f"column {column!r} holds {value!r:.60}, which is not a number.")
    return number


def _several(spec: DataSpec, value: Any) -> list[str]:
    if isinstance(value, str) and spec.separator is not None:
        parts: list[Any] = [part.strip() for part in value.split(spec.separator)]
        value = [part for part in parts if part]
    if not isinstance(value, list):
        hint = "" if spec.separator else " Set data.separator if the labels stand in one text."
        raise RowError("wrong type", f"column {spec.label!r} holds {value!r:.60}, which is no list of labels.{hint}")
    return list(dict.fromkeys(_mapped(spec, each) for each in value))


def _is_given(value: Any, column: str) -> bool:
    name = _name(value).strip().lower()
    if value is None or name not in _YES | _NO:
        raise RowError("wrong type", f"column {column!r} holds {value!r:.60}, which is neither 0 nor 1.")
    return name in _YES


def _name(label: Any) -> str:
    """Labels compare by their text; 1, 1.0 and "1.0" are the same label."""
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    text = str(label)
    return text.split(".", 1)[0] if _WHOLE.fullmatch(text) else text


def _mapped(spec: DataSpec, value: Any) -> str:
    name = _name(value)
    names = {str(key): str(to) for key, to in spec.label_map.items()}
    return names.get(name, name)


def indexer(spec: DataSpec, names: list[str], known_from: str) -> Callable[[Label], Any]:
    """Return a function from a label as read to what a model learns: an index, a number, or a 0/1 for each label.

    The function raises RowError for a label that is not among the names.

    Args:
        spec: the recipe's data section.
        names: all labels.
        known_from: where they stand, for messages.
    """
    index = {name: i for i, name in enumerate(names)}

    def look_up(name: str) -> int:
        if name not in index:
            hint = f"{nearest(name, names)} Labels: {listed(names)}."
            raise RowError("unknown label", f"label {name!r} is not {known_from}.{hint}")
        return index[name]

    def convert(label: Label) -> Any:
        if isinstance(label, str):
            return look_up(label)
        if isinstance(label, float):
            return label
        found = [0.0] * len(names)
        for name in label:
            found[look_up(name)] = 1.0
        return found

    assert spec.kind is not None  # noqa: S101 - the specification settles it
    return convert
