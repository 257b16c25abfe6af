"""Metrics are those of scikit-learn and SciPy, on any answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsee.tasks import classification_metrics, measure, multi_label_metrics, regression_metrics
from dsee.tasks.metrics import METRICS


def answers(seed, rows, classes):
    draw = np.random.default_rng(seed)
    return draw.normal(size=(rows, classes)), draw


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), rows=st.integers(2, 40))
def test_two_classes(seed, rows):
    logits, draw = answers(seed, rows, 2)
    labels = draw.integers(0, 2, rows)
    found, said = classification_metrics(logits, labels), logits.argmax(1)
    tp, fp, fn = (int(((said == a) & (labels == b)).sum()) for a, b in ((1, 1), (1, 0), (0, 1)))
    tn = rows - tp - fp - fn
    assert found["accuracy"] == pytest.approx(100 * (tp + tn) / rows)
    assert found["f1"] == pytest.approx(100 * 2 * tp / max(1, 2 * tp + fp + fn))
    below = float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert found["matthews"] == pytest.approx(100 * (tp * tn - fp * fn) / below if below else 0)


def test_three_classes_have_no_f1():
    logits, draw = answers(0, 30, 3)
    assert "f1" not in classification_metrics(logits, draw.integers(0, 3, 30))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), rows=st.integers(3, 40))
def test_regression(seed, rows):
    logits, draw = answers(seed, rows, 1)
    labels = draw.normal(size=rows)
    found = regression_metrics(logits, labels)
    assert found["pearson"] == pytest.approx(100 * np.corrcoef(logits[:, 0], labels)[0, 1])
    ranks = [np.argsort(np.argsort(x)) for x in (logits[:, 0], labels)]
    assert found["spearman"] == pytest.approx(100 * np.corrcoef(*ranks)[0, 1])
    assert found["mse"] == pytest.approx(float(((logits[:, 0] - labels) ** 2).mean()))


def test_a_constant_has_no_correlation():
    assert regression_metrics(np.ones((4, 1)), np.arange(4.0)) == {"pearson": 0.0, "spearman": 0.0, "mse": 1.5}
    assert regression_metrics(np.ones((1, 1)), np.ones(1))["pearson"] == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), rows=st.integers(1, 30), classes=st.integers(1, 5))
def test_several_labels(seed, rows, classes):
    logits, draw = answers(seed, rows, classes)
    labels = draw.integers(0, 2, (rows, classes)).astype(np.float32)
    found, said, wanted = multi_label_metrics(logits, labels), logits > 0, labels == 1

    def f1(said, wanted):
        return 2 * (said & wanted).sum() / max(1, said.sum() + wanted.sum())

    assert found["f1_micro"] == pytest.approx(100 * f1(said, wanted))
    each = [f1(said[:, i], wanted[:, i]) for i in range(classes)]
    assert found["f1_macro"] == pytest.approx(100 * np.mean(each))
    assert found["accuracy"] == pytest.approx(100 * (said == wanted).all(1).mean())


def test_every_figure_has_a_name_and_a_direction():
    for kind, labels in (("classification", [0, 1]), ("regression", [0.0, 1.0]), ("multi-label", [[0, 1], [1, 0]])):
        width = 1 if kind == "regression" else 2
        assert set(measure(kind, np.ones((2, width)), np.array(labels))) <= set(METRICS)
    assert METRICS["mse"].better(1.0, 2.0)
    assert METRICS["pearson"].better(2.0, 1.0)
    assert (METRICS["mse"].shown(0.25), METRICS["accuracy"].shown(91.26)) == ("0.2500", "91.3 %")
