"""What logits say, by the kind of task."""

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsee.runtime.answers import answer, kind_of
from dsee.runtime.serving.engine import Engine, Question

LOGITS = st.lists(st.floats(-80, 80), min_size=1, max_size=5)


@given(LOGITS)
def test_classes_share_one_probability(logits):
    labels = [f"l{i}" for i in range(len(logits))]
    found = answer("classification", labels, np.array(logits))
    assert sum(found.scores.values()) == pytest.approx(1, abs=1e-5)
    assert found.label == labels[int(np.argmax(logits))]
    assert found.score == max(found.scores.values())


@given(LOGITS)
def test_each_of_several_labels_has_its_own(logits):
    labels = [f"l{i}" for i in range(len(logits))]
    found = answer("multi-label", labels, np.array(logits))
    expected = 1 / (1 + np.exp(-np.array(logits)))
    np.testing.assert_allclose(list(found.scores.values()), expected, atol=1e-6)
    assert found.label == ",".join(label for label, logit in zip(labels, logits, strict=True) if logit > 0)


def test_a_regression_answers_with_its_number():
    found = answer("regression", ["score"], np.array([3.25]))
    assert (found.label, found.score, found.scores) == ("score", 3.25, {"score": 3.25})


@pytest.mark.parametrize(
    ("problem", "labels", "kind"),
    [
        ("regression", 1, "regression"),
        ("multi_label_classification", 3, "multi-label"),
        ("single_label_classification", 2, "classification"),
        (None, 2, "classification"),
        (None, 1, "regression"),
    ],
)
def test_a_configuration_says_the_kind(problem, labels, kind):
    assert kind_of(types.SimpleNamespace(problem_type=problem, num_labels=labels)) == kind


class Opened:
    """A model that scores a text by its length."""

    folder, kind, labels, generates, max_length = "nowhere", "regression", ["score"], False, 8

    def count_tokens(self, texts, pairs=None):
        return [len(text) for text in texts]

    def logits(self, texts, pairs=None):
        return np.array([[float(len(text))] for text in texts])


def test_the_server_answers_with_numbers():
    found = Engine(Opened()).classify([Question("abc"), Question("a", "b")])
    assert [(each.label, each.score) for each in found] == [("score", 3.0), ("score", 1.0)]
