"""Reading a table from CSV, TSV, JSON Lines or Parquet, with errors that name the file and the line."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsee.errors import InputError, listed, nearest

SUFFIXES = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
CHUNK = 1 << 20


def read_table(path: Path) -> Any:
    """Read a table as a memory-mapped ``datasets.Dataset``.

    Args:
        path: the file; its suffix says what it is.

    Returns:
        The dataset, with the file's columns.

    Raises:
        InputError: an unknown suffix, text that is not UTF-8, a file that does not parse, or one without rows.
    """
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise InputError(
            f"{path}: {path.suffix or 'no suffix'} is not a known kind of table. Known: {listed(SUFFIXES)}."
        )
    if kind != "parquet":
        check_utf8(path)
    try:
        with quiet_datasets():
            table = _parse(path, kind)
    except Exception as error:
        if "no data" in str(error):
            raise InputError(f"{path} has no rows below its header.") from error
        reason = str(error.__cause__ or error).strip().splitlines()
        raise InputError(
            f"{path} could not be read as {kind}: {reason[0] if reason else type(error).__name__}"
        ) from error
    if len(table) == 0:
        raise InputError(f"{path} has no rows below its header.")
    return table


def _parse(path: Path, kind: str) -> Any:
    from datasets import Dataset

    if kind == "csv":
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        # the word "NA" is a text like any other, not a missing value
        return Dataset.from_csv(str(path), sep=separator, keep_default_na=False)
    if kind == "json":
        return Dataset.from_json(str(path))
    from pyarrow.parquet import read_metadata

    # an empty file of this kind has a schema, and the reader stumbles over it
    return Dataset.from_parquet(str(path)) if read_metadata(path).num_rows else []


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """No bars for a second's work, and no log lines beside the exception."""
    from datasets.utils import logging

    level, showed = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if showed:
            logging.enable_progress_bar()


def check_utf8(path: Path) -> None:
    """Check that a file is UTF-8, reading it piece by piece.

    Args:
        path: the file.

    Raises:
        InputError: it is not; the message names the line.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line += chunk[: error.start].count(b"\n")
                raise InputError(
                    f"{path}, line {line}: not UTF-8 (byte 0x{error.object[error.start]:02x}). Convert it, for example "
                    f"with: iconv -f latin1 -t utf-8 {path.name} > utf8{path.suffix}"
                ) from error
            line += chunk.count(b"\n")
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {line}: the file ends inside a UTF-8 character; it is cut off.") from error


def require_column(table: Any, column: str, path: Path, key: str) -> None:
    """Check that a table has a column.

    Args:
        table: the dataset.
        column: its name.
        path: the file, for the message.
        key: the recipe's key that names the column, for the message.

    Raises:
        InputError: it has none of that name.
    """
    if column not in table.column_names:
        raise InputError(
            f"{path} has no column {column!r} (data.{key}).{nearest(column, table.column_names)} "
            f"Its columns: {listed(table.column_names)}."
        )
