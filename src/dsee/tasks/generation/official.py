"""The files of E2E, DART and WebNLG as their authors publish them, linearised as microsoft/LoRA's scripts do it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from dsee.errors import InputError
from dsee.tasks.bad_rows import RowError
from dsee.tasks.sources import Numbered, Source, Values, open_source

Format = Literal["table", "e2e", "dart", "webnlg"]

#: Columns of what is read here.
SOURCE, TARGET = "source", "target"
#: E2E's slots where LoRA's files call them something else.
_SLOTS = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
_SLOT = re.compile(r"\s*([^,\[\]]+?)\s*\[([^\]]*)\]\s*,?")


def open_official(path: Path, form: str, *, quotes: bool = True) -> Source:
    """Open a file of one of these sets; a source with several texts is as many rows.

    Args:
        path: E2E's CSV with the columns ``mr`` and ``ref``, or DART's or WebNLG's JSON.
        form: "e2e", "dart" or "webnlg".
        quotes: whether quotation marks enclose cells of a CSV file.

    Raises:
        InputError: it is no such file.
    """
    if form == "webnlg":
        return _webnlg(path)
    table = open_source(path, quotes=quotes)
    if form == "e2e":
        # the test set's header is in capitals
        names = {column.lower(): column for column in table.columns}
        wanted = [names.get("mr", "mr"), names.get("ref", "ref")]
        read: Callable[[Values], list[Values]] = lambda values: _e2e(values, *wanted)  # noqa: E731 - one of two
    else:
        wanted, read = ["tripleset", "annotations"], _dart
    for column in wanted:
        table.require(column, f"generation.format: {form}")
    return replace(table, columns=[SOURCE, TARGET], rows=lambda: _each(table.rows(), read))


def _each(rows: Iterator[Numbered], read: Callable[[Values], list[Values]]) -> Iterator[Numbered]:
    """What becomes of each row: one for each of its texts, all of the same number."""
    for number, values in rows:
        if isinstance(values, RowError):
            yield number, values
            continue
        try:
            found = read(values)
        except RowError as fault:
            yield number, fault
            continue
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            yield number, RowError("unreadable", f"not as this set has it ({type(error).__name__}: {error}).")
            continue
        if not found:
            yield number, RowError("missing text", "it has no text.")
        for each in found:
            yield number, each.get("fault", each)


def _e2e(values: Values, data: str, text: str) -> list[Values]:
    """``name[Alimentum], familyFriendly[no]`` as ``name : Alimentum | family friendly : no``."""
    said = str(values[data] or "")
    slots = _SLOT.findall(said)
    if not slots or _SLOT.sub("", said).strip():
        raise RowError("unreadable", f"column {data!r} holds {said!r:.60}, which is not name[value], name[value], ...")
    return [{SOURCE: " | ".join(f"{_SLOTS.get(name, name)} : {value}" for name, value in slots), TARGET: values[text]}]


def _dart(values: Values) -> list[Values]:
    """Relations in small letters, as LoRA's script has them."""
    triples = [(subject, str(relation).lower(), thing) for subject, relation, thing in values["tripleset"]]
    return [{SOURCE: _triples(triples), TARGET: each["text"]} for each in values["annotations"]]


def _triples(triples: list[tuple[Any, Any, Any]]) -> str:
    if not triples:
        raise RowError("missing text", "its set of triples is empty.")
    return " | ".join(" : ".join(str(part) for part in triple) for triple in triples)


def _webnlg(path: Path) -> Source:
    """WebNLG's JSON: one object whose entries each stand under their number."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        entries = content["entries"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} is not WebNLG's JSON, an object with a list of entries ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} has no entries.")

    def numbered() -> Iterator[Numbered]:
        for number, entry in enumerate(entries, 1):
            yield number, entry if isinstance(entry, dict) else RowError("unreadable", f"no object: {entry!r:.40}.")

    return Source(str(path), "entry", [SOURCE, TARGET], lambda: _each(numbered(), _entry))


def _entry(values: Values) -> list[Values]:
    """Its triples with each of its texts; those that the authors of the set mark as bad are bad rows."""
    (entry,) = values.values()
    triples = [(each["subject"], each["property"], each["object"]) for each in entry["modifiedtripleset"]]
    source = _triples(triples)
    return [_text(source, each) for each in entry["lexicalisations"]]


def _text(source: str, said: Any) -> Values:
    mark = said.get("comment") or "good"
    if mark != "good":
        reason = f"a text that the file itself marks as {mark!r}: {said['lex']!r:.60}."
        return {"fault": RowError("marked as bad", reason)}
    return {SOURCE: source, TARGET: said["lex"]}
