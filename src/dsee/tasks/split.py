"""Columns of rows: taking repeated ones out, and cutting a part off."""

from __future__ import annotations

from typing import Any

from dsee.errors import InputError
from dsee.tasks.rows import LABEL, PAIR, TEXT

Rows = dict[str, list[Any]]


def unique(rows: Rows) -> Rows:
    """Return the rows whose texts have not occurred before.

    Args:
        rows: column -> values.
    """
    seen: set[tuple[str, ...]] = set()
    keep = []
    for i, texts in enumerate(zip(rows[TEXT], rows.get(PAIR, rows[TEXT]), strict=True)):
        if texts not in seen:
            seen.add(texts)
            keep.append(i)
    return pick(rows, keep)


def pick(rows: Rows, numbers: list[int]) -> Rows:
    """Return some rows.

    Args:
        rows: column -> values.
        numbers: which.
    """
    return {key: [column[i] for i in numbers] for key, column in rows.items()}


def cut_off(rows: Rows, size: int, seed: int, name: str, *, stratify: bool) -> tuple[Rows, Rows]:
    """Return the rest and a part of ``size`` rows, drawn at random.

    Args:
        rows: column -> values.
        size: of the part.
        seed: decides which.
        name: of the part, for messages.
        stratify: have each label in both in proportion.

    Raises:
        InputError: there are too few rows.
    """
    from sklearn.model_selection import train_test_split

    count = len(rows[LABEL])
    labels = rows[LABEL] if stratify else None
    try:
        kept, taken = train_test_split(range(count), test_size=size, random_state=seed, stratify=labels)
    except ValueError as error:
        every = " with every label in both" if stratify else ""
        raise InputError(
            f"{count} training rows are too few to cut off {size} for {name}{every} ({error}). Give a file of its own "
            f"as data.{name}, or more rows."
        ) from error
    return pick(rows, kept), pick(rows, taken)
