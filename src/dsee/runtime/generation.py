"""Writing text with nothing but a function from tokens to logits; no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

#: Bytes of logits that one step may fill: a large vocabulary times a long batch would fill the memory.
LOGITS = 256 * 2**20

Logits = Callable[[dict[str, NDArray[np.int64]]], NDArray[np.float32]]


class Writer(Protocol):
    """A model that goes on from rows of tokens, one token at a time; a row can be continued in several ways."""

    def start(self, prompts: list[list[int]]) -> NDArray[np.float32]:
        """Read prompts, one row each; return logits of what comes next, (rows, vocabulary)."""

    def step(self, tokens: list[int], parents: list[int]) -> NDArray[np.float32]:
        """Go on with new rows: row ``i`` is the earlier row ``parents[i]`` and ``tokens[i]``; logits as above."""


class Rereading:
    """A writer without a memory: each step reads everything again.

    Rows are filled up on the right. A causal model's real tokens do not see what stands there, and keep the positions
    they have alone, so a prompt gets the same answer in any batch.
    """

    def __init__(self, run: Logits, *, start: int | None, vocabulary: int) -> None:
        """Set up.

        Args:
            run: gives logits, (batch, tokens, vocabulary).
            start: first token of the decoder, for a model that writes from what an encoder has read; None for a
                decoder.
            vocabulary: how many tokens there are.
        """
        self._run, self._start, self._vocabulary = run, start, vocabulary
        self._rows: list[tuple[list[int], list[int]]] = []

    def start(self, prompts: list[list[int]]) -> NDArray[np.float32]:
        """Read prompts.

        Args:
            prompts: token ids, at least one each.
        """
        self._rows = [(prompt, []) for prompt in prompts]
        return self._logits()

    def step(self, tokens: list[int], parents: list[int]) -> NDArray[np.float32]:
        """Go on with new rows.

        Args:
            tokens: the new token of each row.
            parents: the earlier row it goes on from.
        """
        earlier = self._rows
        self._rows = [(earlier[i][0], [*earlier[i][1], token]) for token, i in zip(tokens, parents, strict=True)]
        return self._logits()

    def _logits(self) -> NDArray[np.float32]:
        longest = max(len(prompt) + len(new) for prompt, new in self._rows)
        size = max(1, LOGITS // (4 * self._vocabulary * longest))
        return np.concatenate([self._last(self._rows[at : at + size]) for at in range(0, len(self._rows), size)])

    def _last(self, rows: list[tuple[list[int], list[int]]]) -> NDArray[np.float32]:
        """Logits behind the last token of each row."""
        if self._start is None:
            written = [prompt + new for prompt, new in rows]
            inputs = filled_up(written)
        else:
            written = [[self._start, *new] for _, new in rows]
            inputs = filled_up([prompt for prompt, _ in rows]) | {"decoder_input_ids": filled_up(written)["input_ids"]}
        logits = self._run(inputs)
        return np.stack([row[len(tokens) - 1] for row, tokens in zip(logits, written, strict=True)])


def until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """Return tokens up to and with the first that ends a text.

    Args:
        tokens: token ids.
        ends: those that end a text.
    """
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens


def greedy(
    writer: Writer, prompts: list[list[int]], max_new_tokens: int, ends: set[int], *, no_repeat: int = 0
) -> list[list[int]]:
    """Go on from prompts, always with the likeliest token.

    Args:
        writer: the model.
        prompts: token ids of each prompt, at least one each.
        max_new_tokens: most new tokens for each.
        ends: tokens that end a text.
        no_repeat: no text says the same so many tokens twice; 0 allows it.

    Returns:
        The new tokens of each prompt, up to and with the one that ends the text.
    """
    found: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    logits = writer.start(prompts)
    while True:
        for row, i in zip(logits, active, strict=True):
            row = forbid_repeats(row, found[i], no_repeat)
            found[i].append(int(row.argmax()))
        kept = [place for place, i in enumerate(active) if found[i][-1] not in ends and len(found[i]) < max_new_tokens]
        if not kept:
            return found
        active = [active[place] for place in kept]
        logits = writer.step([found[i][-1] for i in active], kept)


def forbid_repeats(scores: NDArray[np.float32], written: list[int], size: int) -> NDArray[np.float32]:
    """Return scores with every token at -inf that would say the same ``size`` tokens a second time.

    Args:
        scores: (vocabulary,).
        written: the text so far, its prompt left out: what stands there may be repeated.
        size: 0 forbids nothing.
    """
    if not size:
        return scores
    last = written[len(written) - size + 1 :] if size > 1 else []
    banned = [written[at + size - 1] for at in range(len(written) - size + 1) if written[at : at + size - 1] == last]
    if banned:
        scores = scores.copy()
        scores[banned] = -np.inf
    return scores


def filled_up(rows: list[list[int]]) -> dict[str, Any]:
    """Return rows of token ids as one batch, filled up on the right, and its mask.

    Args:
        rows: token ids.
    """
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}
