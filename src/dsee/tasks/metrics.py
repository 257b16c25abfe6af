"""Metrics of text classification, by scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def classification_metrics(logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Return accuracy and macro F1, in percent.

    Args:
        logits: (examples, classes).
        labels: (examples,) class indices.
    """
    from sklearn.metrics import accuracy_score, f1_score

    predicted = np.asarray(logits).argmax(axis=-1)
    return {
        "accuracy": 100.0 * float(accuracy_score(labels, predicted)),
        "f1_macro": 100.0 * float(f1_score(labels, predicted, average="macro", zero_division=0)),
    }
