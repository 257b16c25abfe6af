"""Beam search on logits alone, with the rules of transformers' ``generate``; no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dsee.runtime.generation import Writer, forbid_repeats


@dataclass
class _Search:
    """The search after one prompt.

    Attributes:
        running: tokens of each unfinished text.
        scores: their summed log-probabilities, best first.
        finished: (score, tokens) of the best finished texts, best first.
    """

    running: list[list[int]] = field(default_factory=lambda: [[]])
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(1, dtype=np.float32))
    finished: list[tuple[float, list[int]]] = field(default_factory=list)


def beam_search(
    writer: Writer,
    prompts: list[list[int]],
    max_new_tokens: int,
    ends: set[int],
    *,
    beams: int,
    length_penalty: float = 1.0,
    no_repeat: int = 0,
) -> list[list[int]]:
    """Go on from prompts with the likeliest whole text that a search with so many beams finds.

    In each step the best ``(1 + ends) * beams`` continuations of all unfinished texts are looked at. Of those that end,
    the ones among the first ``beams`` are kept by score; the best that go on become the next beams. A prompt is done
    when ``beams`` texts are finished and the best unfinished one, at its length now, scores no better than the worst of
    them (``early_stopping=False`` of transformers 5). A score is the sum of log-probabilities over the length to the
    power of ``length_penalty`` (Wu et al. 2016, without the constant).

    Args:
        writer: the model.
        prompts: token ids of each prompt, at least one each.
        max_new_tokens: most new tokens for each.
        ends: tokens that end a text.
        beams: unfinished texts for each prompt.
        length_penalty: see above.
        no_repeat: no text says the same so many tokens twice; 0 allows it.

    Returns:
        The new tokens of each prompt, up to and with the one that ends the text.
    """
    searches = [_Search() for _ in prompts]
    active = list(range(len(prompts)))
    rows = [[i] for i in range(len(prompts))]
    logits = writer.start(prompts)
    while True:
        tokens: list[int] = []
        parents: list[int] = []
        after: list[list[int]] = []
        going_on = []
        for i, own in zip(active, rows, strict=True):
            chosen = _advance(searches[i], logits[own], max_new_tokens, ends, beams, length_penalty, no_repeat)
            if not chosen:
                continue
            going_on.append(i)
            after.append(list(range(len(tokens), len(tokens) + len(chosen))))
            parents += [own[beam] for beam in chosen]
            tokens += [text[-1] for text in searches[i].running]
        if not going_on:
            return [search.finished[0][1] for search in searches]
        active, rows = going_on, after
        logits = writer.step(tokens, parents)


def _advance(
    search: _Search,
    logits: NDArray[np.float32],
    max_new_tokens: int,
    ends: set[int],
    beams: int,
    length_penalty: float,
    no_repeat: int,
) -> list[int]:
    """One step of one search; for each next beam the one it goes on from, none if the search is done."""
    likely = np.stack(
        [forbid_repeats(_log_softmax(row), text, no_repeat) for row, text in zip(logits, search.running, strict=True)]
    )
    total = (likely + search.scores[:, None]).reshape(-1)
    size = len(search.running[0]) + 1
    going_on: list[tuple[int, int, np.float32]] = []
    for rank, place in enumerate(_best(total, max(2, 1 + len(ends)) * beams)):
        beam, token = divmod(int(place), logits.shape[-1])
        if token not in ends and size < max_new_tokens:
            going_on.append((beam, token, total[place]))
        elif rank < beams:
            score = float(total[place] / np.float32(size**length_penalty))
            search.finished.append((score, [*search.running[beam], token]))
    search.finished = sorted(search.finished, key=lambda found: -found[0])[:beams]
    going_on = going_on[:beams]
    done = not going_on or (
        len(search.finished) == beams
        and float(going_on[0][2] / np.float32(size**length_penalty)) <= search.finished[-1][0]
    )
    if done:
        return []
    search.running = [[*search.running[beam], token] for beam, token, _ in going_on]
    search.scores = np.array([score for _, _, score in going_on], dtype=np.float32)
    return [beam for beam, _, _ in going_on]


def _best(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of the largest scores, largest first, the first of equals first."""
    count = min(count, len(scores))
    found = np.sort(np.argpartition(-scores, count - 1)[:count])
    return found[np.argsort(-scores[found], kind="stable")]


def _log_softmax(row: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = row - row.max()
    found: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum())
    return found
