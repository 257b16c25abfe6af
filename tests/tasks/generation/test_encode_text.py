"""Tokens of prompts and targets, packing, and the loss over them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsee.errors import InputError
from dsee.tasks.generation import EncodedText, Example, GenerationSpec, collate_text
from dsee.tasks.generation.loss import text_loss
from dsee.tasks.generation.pack import IGNORED
from dsee.tasks.generation.pack import packed as in_one
from writing_tools import CHAT, END, GOOD_CHAT, MODELS, lively, rows, tokenizer

WORDS = tokenizer()


def examples(count=6):
    return [Example(row["source"], row["target"], tuple(row["references"]), "rows") for row in rows(count)]


def encoded(kind="data-to-text", words=WORDS, length=64, count=6, **spec):
    return EncodedText(examples(count), words, length, GenerationSpec(**spec), kind)


def by_hand(model, data):
    """-ln p of every learned token, one unpadded sequence at a time."""
    total, count = 0.0, 0
    for feature in data.features:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([feature["input_ids"]])).logits[0].log_softmax(-1)
        for place, label in enumerate(feature["labels"][1:]):
            if label != IGNORED:
                total -= float(logits[place, label])
                count += 1
    return total / count, count


@pytest.mark.parametrize("kind", ["data-to-text", "instruction"])
def test_the_loss_is_on_the_target_and_its_end(kind):
    data = encoded(kind)
    for feature, example in zip(data.features, data.examples, strict=True):
        learned = [i for i, label in zip(feature["input_ids"], feature["labels"], strict=True) if label != IGNORED]
        assert learned == [label for label in feature["labels"] if label != IGNORED]
        assert WORDS.decode(learned) == f" {example.target}{END}"
        given = feature["input_ids"][: -len(learned)]
        assert WORDS.decode(given) == example.prompt + END
        assert given in data.prompts


def test_a_separator_of_ones_own():
    data = encoded(separator="\n=> ")
    text = WORDS.decode(data.features[0]["input_ids"])
    assert text == f"{data.examples[0].prompt}\n=> {data.examples[0].target}{END}"


def test_a_chat_template_is_used_where_there_is_one():
    words = tokenizer(GOOD_CHAT)
    data = encoded("instruction", words)
    e = data.examples[0]
    assert words.decode(data.features[0]["input_ids"]) == f"<|user|>{e.prompt}<|assistant|>{e.target}{END}"
    assert words.decode(data.prompts[0]) == f"<|user|>{e.prompt}<|assistant|>"
    assert words.decode(encoded("instruction", words, chat=False).prompts[0]) == e.prompt + END
    with pytest.raises(InputError, match="no chat template"):
        encoded("instruction", chat=True)
    with pytest.raises(InputError, match="cannot be told apart"):
        encoded("instruction", tokenizer(CHAT))


def test_what_is_too_long_is_cut_and_counted_or_refused():
    size = max(len(f["input_ids"]) for f in encoded().features)
    data = encoded(length=size - 1)
    assert data.shortened >= 1
    assert max(len(f["input_ids"]) for f in data.features) == size - 1
    with pytest.raises(InputError, match=r"rows: the prompt has \d+ tokens and leaves no room.*max_length=5"):
        encoded(length=5)


def test_a_tokenizer_that_cannot_end_a_text_is_refused():
    words = tokenizer()
    words.eos_token = None
    with pytest.raises(InputError, match="eos_token"):
        encoded(words=words)


@pytest.mark.parametrize("family", MODELS)
def test_a_packed_example_sees_no_other(family):
    model = lively(MODELS[family]())
    apart, packed = encoded(), encoded(packed=True)
    assert len(packed) < len(apart)
    losses = []
    for data in (apart, packed):
        batch = collate_text(WORDS)(data.features)
        with torch.no_grad():
            losses.append(float(model(**batch).loss))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(20, 50))
def test_packing_loses_nothing(sizes, length):
    made = [{"input_ids": [i] * size, "labels": [i] * size} for i, size in enumerate(sizes)]
    packed = in_one(made, length)
    assert all(len(row["input_ids"]) <= length for row in packed)
    assert sorted(i for row in packed for i in row["input_ids"]) == sorted(i for r in made for i in r["input_ids"])
    assert sum(row["position_ids"].count(0) for row in packed) == len(sizes)
    for row in packed:
        # the first token of an example is never learned, all others are
        assert [label == IGNORED for label in row["labels"]] == [place == 0 for place in row["position_ids"]]


def test_plain_text_runs_on_in_blocks():
    lines = [Example("", text, (), "rows") for text in ("the mill\n", "\n", "serves food\n")]
    data = EncodedText(lines, WORDS, 4, GenerationSpec(), "language-modelling")
    assert WORDS.decode([i for f in data.features for i in f["input_ids"]]).startswith("the mill\n\nserves")
    assert {len(f["input_ids"]) for f in data.features[:-1]} == {4}
    assert all(f["labels"] == f["input_ids"] for f in data.features)
    paragraphs = [Example("", text, (), "rows") for text in ("the mill", "serves food")]
    data = EncodedText(paragraphs, WORDS, 64, GenerationSpec(), "language-modelling")
    assert WORDS.decode(data.features[0]["input_ids"]) == f"the mill{END}serves food{END}"


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("limit", [1, 2**28])
def test_perplexity_weighs_every_token_the_same(family, limit, monkeypatch):
    from dsee.tasks.generation import loss

    monkeypatch.setattr(loss, "LOGITS", limit)
    model, data = lively(MODELS[family]()), encoded()
    seen = []
    with torch.no_grad():
        found = text_loss(lambda b: model(**b).logits, data, collate_text(WORDS), 340, progress=seen.append)
    expected, count = by_hand(model, data)
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    assert (found["tokens"], sum(seen)) == (count, len(data))
    assert len(seen) == (len(data) if limit == 1 else 1)
