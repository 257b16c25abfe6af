"""Tokens and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsee.tasks.text import LABEL, PAIR, TEXT


class Encoded(torch.utils.data.Dataset[dict[str, Any]]):
    """One part of a data set as token ids, ready for a Trainer.

    Attributes:
        features: for each example ``input_ids``, ``attention_mask``, ``labels`` and what else the tokenizer makes.
    """

    def __init__(self, part: Any, tokenizer: Any, max_length: int) -> None:
        """Tokenize.

        Args:
            part: a dataset with ``text``, perhaps ``text_pair``, and ``label``.
            tokenizer: the model's tokenizer.
            max_length: longer inputs are truncated.
        """
        pairs = list(part[PAIR]) if PAIR in part.column_names else None
        encoded = tokenizer(list(part[TEXT]), pairs, truncation=True, max_length=max_length)
        self.features = [
            {key: encoded[key][i] for key in encoded} | {"labels": int(label)} for i, label in enumerate(part[LABEL])
        ]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.features[index]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, (examples,)."""
        return np.array([feature["labels"] for feature in self.features], dtype=np.int64)


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
    order = sorted(range(len(data))[:limit], key=lambda i: (len(data.features[i]["input_ids"]), i))
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

    Args:
        run: logits of one batch.
        data: the examples.
        collate: makes a padded batch.
        batch_size: examples per batch.
        progress: called with the number of examples done since the last call.

    Returns:
        (examples, classes).
    """
    result: NDArray[np.float32] | None = None
    for positions, batch in batches(data, collate, batch_size):
        logits = run(batch)
        if result is None:
            result = np.zeros((len(data), *logits.shape[1:]), dtype=np.float32)
        result[positions] = logits
        if progress:
            progress(len(positions))
    assert result is not None, "a data set has rows"  # noqa: S101 - read_table refuses empty files
    return result
