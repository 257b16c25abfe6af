"""Rows of a table one after the other, each with its line in the file, in constant memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsee.errors import InputError, listed, nearest
from dsee.tasks.bad_rows import RowError
from dsee.tasks.table import SUFFIXES

#: Longest cell of a CSV file; the csv module's own limit is a hundredth of a novel.
LONGEST = 1 << 30
#: Rows of Parquet and JSON looked at for the names of columns.
PEEKED = 1000

Values = dict[str, Any]
#: Line (or row) number, and the row or what is wrong with it.
Numbered = tuple[int, Values | RowError]


@dataclass(frozen=True)
class Source:
    """A table to be read as often as one likes.

    Attributes:
        name: the file, or what stands for it in messages.
        unit: what rows are numbered by, "line" or "row".
        columns: their names.
        rows: starts reading.
    """

    name: str
    unit: str
    columns: list[str]
    rows: Callable[[], Iterator[Numbered]]

    def place(self, number: int) -> str:
        """Return where a row is, for messages.

        Args:
            number: its line or row.
        """
        return f"{self.name}, {self.unit} {number}"

    def require(self, column: str, key: str) -> None:
        """Check that there is a column.

        Args:
            column: its name.
            key: the recipe's key that names it, for the message.

        Raises:
            InputError: there is none of that name, or more than one.
        """
        if column not in self.columns:
            raise InputError(
                f"{self.name} has no column {column!r} ({key}).{nearest(column, self.columns)} "
                f"Its columns: {listed(self.columns)}."
            )
        if self.columns.count(column) > 1:
            raise InputError(f"{self.name} has two columns {column!r} ({key}). Rename one of them.")


def open_source(path: Path, *, quotes: bool = True) -> Source:
    """Open a file.

    Args:
        path: CSV, TSV, JSON Lines (or a JSON array) or Parquet; its suffix says which.
        quotes: whether quotation marks enclose cells of CSV and TSV.

    Raises:
        InputError: an unknown suffix, a file that is no such table, or one without rows.
    """
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise InputError(
            f"{path}: {path.suffix or 'no suffix'} is not a known kind of table. Known: {listed(SUFFIXES)}."
        )
    if kind == "parquet":
        return _parquet(path)
    if kind == "json":
        return _with_peeked_columns(path, lambda: _json(path))
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    header = next(_cells(path, separator, quotes), (0, RowError("unreadable", "there is no header")))[1]
    if isinstance(header, RowError):
        raise InputError(f"{path} could not be read as csv: {header.reason}")
    columns = header
    if next(_csv(path, separator, quotes, columns), None) is None:
        raise InputError(f"{path} has no rows below its header.")
    return Source(str(path), "line", columns, lambda: _csv(path, separator, quotes, columns))


def _cells(path: Path, separator: str, quotes: bool) -> Iterator[tuple[int, list[str] | RowError]]:
    """Header and rows; a row that lies on several lines has the number of the first."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        more: Any = {} if quotes else {"quoting": csv.QUOTE_NONE}
        reader = csv.reader(stream, delimiter=separator, strict=True, **more)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "end of data" in str(error):
                    # it would take the rest of the file for one row
                    raise InputError(
                        f"{path}, line {line}: a quotation mark is opened and never closed. If quotation marks are "
                        "characters like others in this file, set data.quotes: false."
                    ) from error
                yield line, RowError("unreadable", f"{error}.")
                continue
            if cells and (len(cells) > 1 or cells[0].strip()):
                yield line, cells


def _csv(path: Path, separator: str, quotes: bool, columns: list[str]) -> Iterator[Numbered]:
    rows = _cells(path, separator, quotes)
    next(rows)
    for line, cells in rows:
        if isinstance(cells, RowError):
            yield line, cells
        elif len(cells) != len(columns):
            yield line, RowError("unreadable", f"{len(cells)} cells where the header has {len(columns)}.")
        else:
            yield line, dict(zip(columns, cells, strict=True))


def _json(path: Path) -> Iterator[Numbered]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
        start = stream.read(1)
        while start.isspace():
            start = stream.read(1)
        stream.seek(0)
        if start == "[":
            yield from _array(path, stream.read().lstrip("\ufeff"))
            return
        for line, text in enumerate(stream, 1):
            if text.strip():
                yield line, _object(text)


def _object(text: str) -> Values | RowError:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        return RowError("unreadable", f"not JSON ({getattr(error, 'msg', None) or error}).")
    return found if isinstance(found, dict) else RowError("unreadable", f"not a JSON object but {found!r:.40}.")


def _array(path: Path, text: str) -> Iterator[Numbered]:
    """The elements of one array that is the whole file."""
    decoder = json.JSONDecoder()
    place, line, counted = text.index("[") + 1, 1, 0
    while True:
        while place < len(text) and (text[place].isspace() or text[place] == ","):
            place += 1
        line += text.count("\n", counted, place)
        counted = place
        if text[place : place + 1] == "]":
            return
        try:
            found, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            # where the next element would start is anyone's guess
            raise InputError(f"{path}, line {line} could not be read as json: {error}") from error
        yield (
            line,
            found if isinstance(found, dict) else RowError("unreadable", f"not a JSON object but {found!r:.40}."),
        )


def _with_peeked_columns(path: Path, rows: Callable[[], Iterator[Numbered]]) -> Source:
    columns: dict[str, None] = {}
    empty = True
    for (_, values), _ in zip(rows(), range(PEEKED), strict=False):
        empty = False
        columns |= dict.fromkeys(values) if isinstance(values, dict) else {}
    if empty:
        raise InputError(f"{path} has no rows.")
    if not columns:
        first = next(rows())
        raise InputError(f"{path}, line {first[0]} could not be read as json: {first[1]}")
    return Source(str(path), "line", list(columns), rows)


def _parquet(path: Path) -> Source:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    def rows() -> Iterator[Numbered]:
        number = 0
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PEEKED):
                for values in batch.to_pylist():
                    number += 1
                    yield number, values

    try:
        with ParquetFile(path) as file:
            columns, count = list(file.schema_arrow.names), file.metadata.num_rows
    except (ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()
        raise InputError(
            f"{path} could not be read as parquet: {reason[0] if reason else type(error).__name__}"
        ) from error
    if count == 0:
        raise InputError(f"{path} has no rows below its header.")
    return Source(str(path), "row", columns, rows)
