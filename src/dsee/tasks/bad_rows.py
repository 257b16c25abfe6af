"""Rows that cannot be used: where they are, why, and how many are tolerated."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from dsee.errors import InputError

#: How many are spelled out in an error, and kept for a report.
SHOWN, KEPT = 6, 1000


class RowError(Exception):
    """What is wrong with one row: a kind to count by, and a sentence."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


@dataclass
class BadRows:
    """All bad rows of a run.

    Attributes:
        limit: how many may be left out.
        counts: how many of each kind there are.
        said: file, line and reason of each, the first thousand.
    """

    limit: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    said: list[str] = field(default_factory=list)

    def add(self, place: str, fault: RowError) -> None:
        """Note one.

        Args:
            place: file and line.
            fault: what is wrong.
        """
        self.counts[fault.kind] += 1
        if len(self.said) < KEPT:
            self.said.append(f"{place}: {fault.reason}")

    def check(self) -> None:
        """Accept what was found, or refuse it.

        Raises:
            InputError: there are more bad rows than may be left out; the first ones are listed, all are counted.
        """
        total = self.counts.total()
        if total <= self.limit:
            return
        remedy = f"Mend what is wrong, or leave such rows out with data.max_bad_rows: {total}."
        if total == 1:
            raise InputError(f"{self.said[0]} {remedy}")
        lines = [f"{total} rows cannot be used ({self.summary}):", *(f"  {each}" for each in self.said[:SHOWN])]
        if total > SHOWN:
            lines.append(f"  and {total - SHOWN} more")
        raise InputError("\n".join([*lines, remedy]))

    @property
    def summary(self) -> str:
        """How many there are of each kind."""
        return ", ".join(f"{count} x {kind}" for kind, count in sorted(self.counts.items()))

    @property
    def notes(self) -> list[str]:
        """What a report says of them."""
        total = self.counts.total()
        if not total:
            return []
        return [f"left out {total} bad row(s): {self.summary}", *below(self.said, total)]


def below(lines: list[str], total: int) -> list[str]:
    """Return lines to stand below another, no more than a report can hold.

    Args:
        lines: what there is to say, or the first of it.
        total: how much there is in all.
    """
    shown = lines[:KEPT]
    return [*(f"  {line}" for line in shown), *([f"  and {total - len(shown)} more"] if total > len(shown) else [])]


def in_short(notes: list[str]) -> list[str]:
    """Return notes with no more than a handful of lines below each, as a terminal can show them.

    Args:
        notes: lines, those below another one beginning with blanks.
    """
    found: list[str] = []
    under: list[str] = []
    for note in [*notes, ""]:
        if note.startswith(" "):
            under.append(note)
            continue
        found += under if len(under) <= SHOWN else [*under[:SHOWN], "  and more; the report lists them"]
        under = []
        found += [note] if note else []
    return found
