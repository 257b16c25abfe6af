"""Writing text with nothing but a function from tokens to logits; no torch, no cache of earlier steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Bytes of logits that one step may fill: a large vocabulary times a long batch would fill the memory.
LOGITS = 256 * 2**20

Logits = Callable[[dict[str, NDArray[np.int64]]], NDArray[np.float32]]


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
    run: Logits, prompts: list[list[int]], max_new_tokens: int, ends: set[int], *, start: int | None, vocabulary: int
) -> list[list[int]]:
    """Go on from prompts, always with the likeliest token; every step reads everything again.

    Rows are filled up on the right. A causal model's real tokens do not see what stands there, and keep the positions
    they have alone, so a prompt gets the same answer in any batch.

    Args:
        run: gives logits, (batch, tokens, vocabulary).
        prompts: token ids of each prompt, at least one each.
        max_new_tokens: most new tokens for each.
        ends: tokens that end a text.
        start: first token of the decoder, for a model that writes from what an encoder has read; None for a decoder.
        vocabulary: how many tokens there are.

    Returns:
        The new tokens of each prompt, up to and with the one that ends the text.
    """
    found: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    for _ in range(max_new_tokens):
        longest = max(len(prompts[i]) + len(found[i]) for i in active)
        rows = max(1, LOGITS // (4 * vocabulary * longest))
        for at in range(0, len(active), rows):
            chunk = active[at : at + rows]
            for i, token in zip(chunk, _step(run, [(prompts[i], found[i]) for i in chunk], start), strict=True):
                found[i].append(token)
        active = [i for i in active if found[i][-1] not in ends]
        if not active:
            break
    return found


def _step(run: Logits, rows: list[tuple[list[int], list[int]]], start: int | None) -> list[int]:
    """The likeliest next token of each row."""
    if start is None:
        written = [prompt + new for prompt, new in rows]
        inputs = _padded(written)
    else:
        written = [[start, *new] for _, new in rows]
        inputs = _padded([prompt for prompt, _ in rows]) | {"decoder_input_ids": _padded(written)["input_ids"]}
    logits = run(inputs)
    return [int(row[len(tokens) - 1].argmax()) for row, tokens in zip(logits, written, strict=True)]


def _padded(rows: list[list[int]]) -> dict[str, Any]:
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}
