"""Greedy writing without a cache, against a model that is a formula; beams, against those of transformers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsee.runtime import generation
from dsee.runtime.asked import StoredDecoding, write
from dsee.runtime.generation import Rereading, forbid_repeats, greedy, until_end
from dsee.tasks.generation import DecodingSpec, write_texts
from writing_tools import gpt2, lively, tokenizer

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


def rereading(run, start=None):
    return Rereading(run, start=start, vocabulary=VOCABULARY)


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
    found = greedy(rereading(run, start), rows, count, {END})
    assert found == [one_by_one(row, count, start) for row in rows]


def test_a_step_fills_no_more_memory_than_it_may(monkeypatch):
    shapes = []

    def run(inputs):
        logits = causal(inputs)
        shapes.append(logits.nbytes)
        return logits

    rows = [[1, 2, 3, 4], [5], [6, 1], [2, 2, 2], [9]]
    whole = greedy(rereading(causal), rows, 5, {END})
    monkeypatch.setattr(generation, "LOGITS", 1000)
    assert greedy(rereading(run), rows, 5, {END}) == whole
    assert max(shapes) <= 1000


def test_rows_that_have_ended_are_not_run_again():
    sizes = []

    def run(inputs):
        sizes.append(len(inputs["input_ids"]))
        logits = np.zeros((*inputs["input_ids"].shape, VOCABULARY), dtype=np.float32)
        logits[:, :, 4] = 1
        logits[inputs["input_ids"][:, 0] == 1, :, END] = 2
        return logits

    assert greedy(rereading(run), [[1], [2]], 3, {END}) == [[END], [4, 4, 4]]
    assert sizes == [2, 1, 1]


@pytest.mark.parametrize(
    ("tokens", "kept"), [([], []), ([1, 2], [1, 2]), ([7, 1], [7]), ([1, 7, 7], [1, 7]), ([1, 8, 7], [1, 8])]
)
def test_a_text_goes_up_to_its_end(tokens, kept):
    assert until_end(tokens, {7, 8}) == kept


@given(st.lists(st.integers(0, 3), max_size=9), st.integers(0, 4))
def test_a_token_is_forbidden_if_and_only_if_it_would_repeat_an_n_gram(written, size):
    found = forbid_repeats(np.zeros(4, dtype=np.float32), written, size)
    for token in range(4):
        after = [*written, token]
        grams = [tuple(after[at : at + size]) for at in range(len(after) - size + 1)]
        assert (found[token] == -np.inf) == bool(size and len(grams) > 0 and grams.count(grams[-1]) > 1)


@pytest.fixture(scope="module")
def model():
    """Of a model with an end that is likely enough to be met on some beams and not on others."""
    made = lively(gpt2())
    with torch.no_grad():
        made.transformer.wte.weight[0] += 0.6 * made.transformer.wte.weight[1:].mean(0) + 0.15
    return made


@pytest.mark.parametrize("beams", [1, 2, 5])
@pytest.mark.parametrize("penalty", [0.8, 2.0, -1.0])
@pytest.mark.parametrize("no_repeat", [0, 2])
def test_texts_are_those_of_transformers(model, beams, penalty, no_repeat):
    words = tokenizer()
    prompts = [[5, 9, 300], [17], [40, 41, 42, 43, 44, 45, 46], [60, 61]]
    how = {"beams": beams, "length_penalty": penalty, "no_repeat_ngram": no_repeat, "max_new_tokens": 12}

    def run(inputs):
        with torch.no_grad():
            return model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()

    found = write(Rereading(run, start=None, vocabulary=340), prompts, StoredDecoding(**how), {0})
    texts = [words.decode(until_end(tokens, {0}), skip_special_tokens=True).strip() for tokens in found]
    assert texts == write_texts(model, words, prompts, DecodingSpec(**how, batch_size=4))
    assert len(set(map(tuple, found))) == len(prompts)
