"""Batches sorted by length must not shuffle the answers."""

from itertools import chain

import numpy as np
import pytest
from datasets import Dataset
from transformers import DataCollatorWithPadding

from conftest import sentences, tiny_tokenizer
from dsee.tasks.encode import Encoded, batches, predict
from dsee.tasks.metrics import classification_metrics


@pytest.fixture
def encoded():
    rows = sentences(23)
    part = Dataset.from_dict({"text": [t for t, _ in rows], "label": [int(label == "positive") for _, label in rows]})
    return Encoded(part, tiny_tokenizer(), 16)


def test_answers_come_back_in_the_examples_order(encoded):
    def first_token_and_length(batch):
        return np.stack([batch["input_ids"][:, 1].numpy(), batch["attention_mask"].sum(1).numpy()], axis=1)

    found = predict(first_token_and_length, encoded, DataCollatorWithPadding(tiny_tokenizer()), batch_size=4)
    expected = [[f["input_ids"][1], len(f["input_ids"])] for f in encoded.features]
    assert found.tolist() == expected


def test_batches_hold_every_example_once_and_grow(encoded):
    found = list(batches(encoded, DataCollatorWithPadding(tiny_tokenizer()), 5))
    assert sorted(chain.from_iterable(positions for positions, _ in found)) == list(range(23))
    widths = [batch["input_ids"].shape[1] for _, batch in found]
    assert widths == sorted(widths)


def test_long_inputs_are_truncated():
    part = Dataset.from_dict({"text": ["good " * 50], "label": [1]})
    assert len(Encoded(part, tiny_tokenizer(), 16)[0]["input_ids"]) == 16


def test_metrics_are_scikit_learns():
    from sklearn.metrics import accuracy_score, f1_score

    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 3)), rng.integers(0, 3, 50)
    found = classification_metrics(logits, labels)
    assert found["accuracy"] == pytest.approx(100 * accuracy_score(labels, logits.argmax(1)))
    assert found["f1_macro"] == pytest.approx(100 * f1_score(labels, logits.argmax(1), average="macro"))
