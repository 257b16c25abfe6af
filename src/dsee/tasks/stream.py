"""A training part read anew in every epoch, for files larger than memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from dsee.tasks.bad_rows import BadRows, RowError
from dsee.tasks.encode import Encoded, Features, tokenized
from dsee.tasks.rows import Example, examples
from dsee.tasks.text import Stream

#: Rows tokenized at a time.
CHUNK = 256


class Pass(BadRows):
    """Bad rows of one pass, told on to those of all; every pass meets the same ones, so each has a limit of its own.

    Attributes:
        total: bad rows of all passes.
        long: texts of this one that are longer than they may be.
    """

    def __init__(self, total: BadRows) -> None:
        super().__init__(total.limit)
        self.total, self.long = total, 0

    def add(self, place: str, fault: RowError) -> None:
        """Note one.

        Args:
            place: file and line.
            fault: what is wrong.
        """
        super().add(place, fault)
        if f"{place}: {fault.reason}" not in self.total.said:
            self.total.add(place, fault)


class Streamed(torch.utils.data.IterableDataset[dict[str, Any]]):
    """Rows as token ids, drawn from a buffer that is filled from a file; memory holds the buffer and no more.

    Attributes:
        kind: what a label is.
        epoch: how often the file has been begun; decides the order with the seed. A Trainer sets it.
        truncated: texts that a pass has cut to the length; the most there were.
        skipped: longer texts that a pass has left out; the most there were.
        bad: rows that any pass has left out, each once.
    """

    def __init__(self, stream: Stream, tokenizer: Any, max_length: int, seed: int) -> None:
        """Begin.

        Args:
            stream: the rows.
            tokenizer: the model's tokenizer.
            max_length: longer inputs are truncated, left out or bad rows, as ``data.too_long`` says.
            seed: decides the order.
        """
        self.stream, self.tokenizer, self.max_length, self.seed = stream, tokenizer, max_length, seed
        self.kind, self.epoch = str(stream.spec.kind), 0
        self.truncated = self.skipped = 0
        self.bad = BadRows(stream.spec.max_bad_rows)

    def set_epoch(self, epoch: int) -> None:
        """Have the next pass in an order of its own.

        Args:
            epoch: its number.
        """
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        draw = random.Random(f"{self.seed} {self.epoch}")  # noqa: S311 - an order, not a secret
        buffer: list[dict[str, Any]] = []
        for feature in self.rows():
            if len(buffer) < self.stream.spec.shuffle_buffer:
                buffer.append(feature)
                continue
            place = draw.randrange(len(buffer))
            buffer[place], feature = feature, buffer[place]
            yield feature
        draw.shuffle(buffer)
        yield from buffer

    def head(self, count: int) -> Encoded:
        """Return the first rows of the file.

        Args:
            count: how many.
        """
        return Encoded.of(list(islice(self.rows(), count)), self.kind)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read the file from its beginning, in its order.

        Raises:
            InputError: more bad rows than are tolerated, as soon as that is known.
        """
        done = self.new_pass()
        waiting: list[Example] = []
        for example in examples(self.stream.spec, self.stream.source, done):
            done.check()
            waiting.append(example)
            if len(waiting) == CHUNK:
                yield from self._features(waiting, done)
                waiting = []
        yield from self._features(waiting, done)
        done.check()

    def _features(self, rows: list[Example], done: Pass) -> Features:
        if not rows:
            return []
        spec, place = self.stream.spec, self.stream.source.place
        pairs = [row.texts[1] for row in rows] if spec.text_pair else None
        features, longer = tokenized([row.texts[0] for row in rows], pairs, self.tokenizer, self.max_length)
        kept, long = [], 0
        for i, (row, feature) in enumerate(zip(rows, features, strict=True)):
            try:
                if i in longer and spec.too_long == "error":
                    raise RowError("too long", f"{longer[i]} tokens, and max_length is {self.max_length}.")
                feature["labels"] = self.stream.convert(row.label)
            except RowError as fault:
                done.add(place(row.line), fault)
                continue
            long += i in longer
            if i not in longer or spec.too_long != "skip":
                kept.append(feature)
        self.count_long(done, long)
        done.check()
        return kept

    def new_pass(self) -> Pass:
        """Return what takes the bad rows of one pass."""
        return Pass(self.bad)

    def count_long(self, done: Pass, count: int) -> None:
        """Note texts that a pass has cut, or left out, for their length.

        Args:
            done: the pass.
            count: how many more.
        """
        done.long += count
        if self.stream.spec.too_long == "skip":
            self.skipped = max(self.skipped, done.long)
        else:
            self.truncated = max(self.truncated, done.long)

    @property
    def notes(self) -> list[str]:
        """What a report has to say of it."""
        done = {"truncated": self.truncated, "left out": self.skipped}
        said = [
            f"{verb} {count} texts over {self.max_length} tokens in a pass over the training stream"
            for verb, count in done.items()
            if count
        ]
        return [*said, *self.bad.notes]
