"""Greedy writing without a cache, against a model that is a formula."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsee.runtime import generation
from dsee.runtime.generation import greedy, until_end

VOCABULARY, END = 11, 7


def successor(tokens):
    """The next token of the formula: it depends on every token and its place."""
    return sum((place + 1) * token for place, token in enumerate(tokens)) % VOCABULARY


def causal(inputs):
    """Logits whose largest is the successor of the real tokens so far; at padding they are noise."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    assert ids.shape == mask.shape
    logits = np.random.default_rng(0).normal(size=(*ids.shape, VOCABULARY)).astype(np.float32)
    for row, real in enumerate(mask.sum(axis=1)):
        assert mask[row, :real].all()
        for place in range(real):
            logits[row, place, successor(ids[row, : place + 1])] = 99
    return logits


def reading(inputs):
    """The same for a model that writes from what an encoder has read."""
    ids, mask, written = inputs["input_ids"], inputs["attention_mask"], inputs["decoder_input_ids"]
    logits = np.zeros((*written.shape, VOCABULARY), dtype=np.float32)
    for row, real in enumerate(mask.sum(axis=1)):
        for place in range(written.shape[1]):
            logits[row, place, successor([*ids[row, :real], *written[row, : place + 1]])] = 99
    return logits


def one_by_one(prompt, count, start):
    written = [] if start is None else [start]
    found = []
    while len(found) < count and END not in found:
        found.append(successor([*prompt, *written, *found]))
    return found


prompts = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6), min_size=1, max_size=7)


@given(prompts, st.integers(1, 9), st.sampled_from([None, 0, 3]))
def test_every_prompt_gets_what_it_gets_alone(rows, count, start):
    run = causal if start is None else reading
    found = greedy(run, rows, count, {END}, start=start, vocabulary=VOCABULARY)
    assert found == [one_by_one(row, count, start) for row in rows]


def test_a_step_fills_no_more_memory_than_it_may(monkeypatch):
    shapes = []

    def run(inputs):
        logits = causal(inputs)
        shapes.append(logits.nbytes)
        return logits

    rows = [[1, 2, 3, 4], [5], [6, 1], [2, 2, 2], [9]]
    whole = greedy(causal, rows, 5, {END}, start=None, vocabulary=VOCABULARY)
    monkeypatch.setattr(generation, "LOGITS", 1000)
    assert greedy(run, rows, 5, {END}, start=None, vocabulary=VOCABULARY) == whole
    assert max(shapes) <= 1000


def test_rows_that_have_ended_are_not_run_again():
    sizes = []

    def run(inputs):
        sizes.append(len(inputs["input_ids"]))
        logits = np.zeros((*inputs["input_ids"].shape, VOCABULARY), dtype=np.float32)
        logits[:, :, 4] = 1
        logits[inputs["input_ids"][:, 0] == 1, :, END] = 2
        return logits

    assert greedy(run, [[1], [2]], 3, {END}, start=None, vocabulary=VOCABULARY) == [[END], [4, 4, 4]]
    assert sizes == [2, 1, 1]


@pytest.mark.parametrize(
    ("tokens", "kept"), [([], []), ([1, 2], [1, 2]), ([7, 1], [7]), ([1, 7, 7], [1, 7]), ([1, 8, 7], [1, 8])]
)
def test_a_text_goes_up_to_its_end(tokens, kept):
    assert until_end(tokens, {7, 8}) == kept
