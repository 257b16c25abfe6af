"""The three parts of a task of writing: read, checked, split."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

from dsee.errors import InputError
from dsee.tasks.bad_rows import BadRows
from dsee.tasks.generation.rows import Example, examples, open_parts
from dsee.tasks.generation.spec import GenerationSpec
from dsee.tasks.open import PARTS
from dsee.tasks.sources import Source
from dsee.tasks.spec import DataSpec


@dataclass(frozen=True)
class TextStream:
    """A training part that is read anew in every epoch.

    Attributes:
        data: the recipe's data section.
        spec: the recipe's section for writing.
        kind: one of :data:`dsee.tasks.generation.KINDS`.
        source: the table.
    """

    data: DataSpec
    spec: GenerationSpec
    kind: str
    source: Source


@dataclass(frozen=True)
class GenerationData:
    """Three disjoint parts; no prompt of one is in another that was cut off the same file.

    Attributes:
        train: to learn from; a :class:`TextStream` if the recipe wants one.
        validation: to choose the best epoch by.
        test: to report on.
        dropped: repeated examples that were left out on request.
        bad: rows that were left out, as far as that is tolerated.
        notes: what a report has to say of the data.
    """

    train: list[Example] | TextStream
    validation: list[Example]
    test: list[Example]
    dropped: int = 0
    bad: BadRows = field(default_factory=BadRows)
    notes: list[str] = field(default_factory=list)

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of each part, by name; nobody knows how many a stream has."""
        parts = {name: getattr(self, name) for name in PARTS}
        return {name: len(part) for name, part in parts.items() if not isinstance(part, TextStream)}


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
        InputError: anything wrong with a file, or more bad rows than are tolerated, naming file and line.
    """
    sources, bad = open_parts(data, spec, kind, base), BadRows(data.max_bad_rows)
    stream = TextStream(data, spec, kind, sources["train"]) if data.streaming else None
    if stream and (missing := [name for name in PARTS if name not in sources]):
        raise InputError(f"data.streaming: nothing can be cut off a stream, and there is no {missing[0]} part.")
    whole = {name: source for name, source in sources.items() if stream is None or name != "train"}
    read = {name: list(examples(data, spec, kind, source, bad)) for name, source in whole.items()}
    bad.check()
    _require_matches(data, sources, read, bad)
    dropped = 0
    if data.deduplicate:
        unique = list({(e.prompt, e.target): e for e in reversed(read["train"])}.values())[::-1]
        dropped, read["train"] = len(read["train"]) - len(unique), unique
    size = len(read.get("train", []))
    for name, share in (("test", data.split.test), ("validation", data.split.validation)):
        if name not in read:
            read["train"], read[name] = _cut_off(read["train"], round(share * size), seed, name, kind)
    for name, part in read.items():
        if not any(e.target.strip() for e in part):
            raise InputError(f"data.{name}: there is no text in it.")
    notes = [f"left out {dropped} repeated example(s) of the training part"] if dropped else []
    if kind != "language-modelling" and spec.references is None:
        read["test"], joined = _grouped(read["test"])
        notes += [f"counted {joined} further text(s) for the same prompts as references: test"] if joined else []
    return GenerationData(stream or read["train"], read["validation"], read["test"], dropped, bad, notes)


def _require_matches(data: DataSpec, sources: dict[str, Source], read: dict[str, list[Example]], bad: BadRows) -> None:
    for name, part in read.items():
        if data.where and not part and not bad.counts:
            said = ", ".join(f"{column}={value!r}" for column, value in data.where.items())
            raise InputError(f"{sources[name].name}: no row has {said} (data.where).")


def _grouped(part: list[Example]) -> tuple[list[Example], int]:
    """One example for each prompt, with all texts that the part has for it, and how many were joined to another."""
    texts: dict[str, dict[str, None]] = {}
    for e in part:
        texts.setdefault(e.prompt, {})[e.target] = None
    first = {e.prompt: e for e in reversed(part)}
    return [replace(first[prompt], references=tuple(found)) for prompt, found in texts.items()], len(part) - len(texts)


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
