"""A training part of a task of writing that is read anew in every epoch, for files larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from dsee.tasks.bad_rows import RowError
from dsee.tasks.encode import Features
from dsee.tasks.generation.encode import EncodedText, encoder, fitted
from dsee.tasks.generation.pack import blocks, packed, text_ids
from dsee.tasks.generation.parts import TextStream
from dsee.tasks.generation.rows import Example, examples
from dsee.tasks.rows import Label
from dsee.tasks.stream import CHUNK, Pass, Streamed
from dsee.tasks.text import Stream


class StreamedText(Streamed):
    """Examples as token ids, drawn from a buffer that is filled from a file; memory holds the buffer and no more.

    What is packed is packed among the rows that are tokenized together. Plain text is cut into full blocks, one after
    the other; whether its lines run on follows from the first of those rows.
    """

    def __init__(self, texts: TextStream, tokenizer: Any, max_length: int, seed: int) -> None:
        """Begin.

        Args:
            texts: the rows.
            tokenizer: the model's tokenizer.
            max_length: longest sequence in tokens.
            seed: decides the order.

        Raises:
            InputError: the tokenizer has no token that ends texts, or the chat template that is asked for.
        """
        super().__init__(Stream(texts.data, texts.source, _unlabelled), tokenizer, max_length, seed)
        self.texts = texts
        self.encode = None if texts.kind == "language-modelling" else encoder(tokenizer, texts.spec, texts.kind)

    def head(self, count: int) -> EncodedText:  # type: ignore[override]  # of another kind of task
        """Return the first sequences of the file.

        Args:
            count: how many.
        """
        return EncodedText.of(list(islice(self.rows(), count)))

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read the file from its beginning, in its order.

        Raises:
            InputError: more bad rows than are tolerated, as soon as that is known.
        """
        done = self.new_pass()
        if self.encode is None:
            yield from self._blocks(done)
        else:
            for chunk in self._chunks(done):
                yield from self._sequences(chunk, done)
        done.check()

    def _chunks(self, done: Pass) -> Iterator[list[Example]]:
        found = examples(self.texts.data, self.texts.spec, self.texts.kind, self.texts.source, done)
        while chunk := list(islice(found, CHUNK)):
            done.check()
            yield chunk

    def _sequences(self, chunk: list[Example], done: Pass) -> Features:
        assert self.encode is not None  # noqa: S101 - plain text goes another way
        policy, found, long = self.texts.data.too_long, [], 0
        for example, (prompt, target) in zip(chunk, self.encode(chunk), strict=True):
            try:
                row = fitted(prompt, target, self.max_length, policy)
            except RowError as fault:
                done.add(example.place, fault)
                continue
            long += len(prompt) + len(target) > self.max_length
            found += [row] if row else []
        self.count_long(done, long)
        done.check()
        return packed(found, self.max_length) if self.texts.spec.packed else found

    def _blocks(self, done: Pass) -> Iterator[dict[str, Any]]:
        rest: list[int] = []
        run_on: bool | None = None
        for chunk in self._chunks(done):
            if run_on is None:
                run_on = any(e.target.endswith("\n") for e in chunk)
            rest += text_ids(chunk, self.tokenizer, run_on=run_on)
            whole = len(rest) - len(rest) % self.max_length
            yield from blocks(rest[:whole], self.max_length)
            rest = rest[whole:]
        yield from blocks(rest, self.max_length)


def _unlabelled(label: Label) -> Any:
    raise AssertionError(f"what is written has no labels: {label!r}")
