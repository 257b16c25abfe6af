"""Tokens and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsee.processes import spread
from dsee.tasks.kinds import KINDS
from dsee.tasks.rows import LABEL, PAIR, TEXT

Features = list[dict[str, Any]]


class Encoded(torch.utils.data.Dataset[dict[str, Any]]):
    """One part of a data set as token ids, ready for a Trainer.

    Attributes:
        features: for each example ``input_ids``, ``attention_mask``, ``labels`` and what else the tokenizer makes.
        kind: what a label is, see :data:`dsee.tasks.kinds.KINDS`.
        long: position in the part -> tokens, of the texts that are longer than they may be.
    """

    def __init__(
        self, part: Any, tokenizer: Any, max_length: int, *, kind: str = "classification", skip_long: bool = False
    ) -> None:
        """Tokenize.

        Args:
            part: a dataset with ``text``, perhaps ``text_pair``, and ``label`` unless only answers are wanted.
            tokenizer: the model's tokenizer.
            max_length: longer inputs are truncated.
            kind: what a label is.
            skip_long: leave longer inputs out instead.
        """
        self.kind = kind
        pairs = list(part[PAIR]) if PAIR in part.column_names else None
        self.features, self.long = tokenized(list(part[TEXT]), pairs, tokenizer, max_length)
        if LABEL in part.column_names:
            for feature, label in zip(self.features, part[LABEL], strict=True):
                feature["labels"] = label
        if skip_long:
            self.features = [feature for i, feature in enumerate(self.features) if i not in self.long]

    @classmethod
    def of(cls, features: Features, kind: str) -> Encoded:
        """Return a part made of features.

        Args:
            features: see above.
            kind: what a label is.
        """
        part = cls.__new__(cls)
        part.features, part.kind, part.long = features, kind, {}
        return part

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.features[index]

    @property
    def labels(self) -> NDArray[Any]:
        """Class indices or numbers, (examples,), or 0 and 1, (examples, labels)."""
        return np.array([feature["labels"] for feature in self.features], dtype=KINDS[self.kind].dtype)


def tokenized(
    texts: list[str], pairs: list[str] | None, tokenizer: Any, max_length: int
) -> tuple[Features, dict[int, int]]:
    """Return features, cut to a length, and the lengths of those that were longer, by position.

    Args:
        texts: the sentences.
        pairs: the second sentences.
        tokenizer: the model's tokenizer.
        max_length: in tokens, special ones included.
    """
    # a first pass without truncation tells how long they are; only what is too long needs a second one
    encoded = tokenizer(texts, pairs, truncation=False, verbose=False)
    features = [{key: encoded[key][i] for key in encoded} for i in range(len(texts))]
    longer = {i: len(f["input_ids"]) for i, f in enumerate(features) if len(f["input_ids"]) > max_length}
    if longer:
        again = [pairs[i] for i in longer] if pairs is not None else None
        cut = tokenizer([texts[i] for i in longer], again, truncation=True, max_length=max_length)
        for row, i in enumerate(longer):
            features[i] = {key: cut[key][row] for key in cut}
    return features, longer


def in_order(data: Encoded, limit: int | None = None) -> list[int]:
    """Return the positions of examples, the shortest first.

    Args:
        data: the examples.
        limit: only the first so many examples.
    """
    return sorted(range(len(data))[:limit], key=lambda i: (len(data.features[i]["input_ids"]), i))


def batches(
    data: Encoded, collate: Callable[[list[dict[str, Any]]], Any], batch_size: int, limit: int | None = None
) -> Iterator[tuple[list[int], Any]]:
    """Yield ``(positions, batch)``, sorted by length so that little is padded.

    Args:
        data: the examples.
        collate: makes a padded batch of tensors from features.
        batch_size: examples per batch.
        limit: use only the first so many examples.
    """
    order = in_order(data, limit)
    for start in range(0, len(order), batch_size):
        positions = order[start : start + batch_size]
        yield positions, collate([data.features[i] for i in positions])


def predict(
    run: Callable[[Any], NDArray[Any]],
    data: Encoded,
    collate: Callable[[list[dict[str, Any]]], Any],
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Return the logits of every example, in the examples' order.

    Where several processes are at it, each answers its part of the batches, and all get all answers. The batches are
    those of one process, so that their number changes nothing.

    Args:
        run: logits of one batch.
        data: the examples.
        collate: makes a padded batch.
        batch_size: examples per batch.
        progress: called with the number of examples done since the last call.

    Returns:
        (examples, classes).
    """
    order = in_order(data)
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    assert parts, "a data set has rows"  # noqa: S101 - read_table refuses empty files

    def answer(positions: list[int]) -> NDArray[Any]:
        return run(collate([data.features[i] for i in positions]))

    def done(finished: list[list[int]]) -> None:
        if progress:
            progress(sum(map(len, finished)))

    found = spread(parts, answer, done)
    result = np.zeros((len(data), *found[0].shape[1:]), dtype=np.float32)
    for positions, logits in zip(parts, found, strict=True):
        result[positions] = logits
    return result
