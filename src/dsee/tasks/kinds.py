"""The kinds of task on a text or a pair: what a label is, which loss it takes, and what it is judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dsee.errors import InputError, listed, nearest
from dsee.tasks.metrics import Figures, classification_metrics, multi_label_metrics, regression_metrics

KindName = Literal["classification", "multi-label", "regression"]


@dataclass(frozen=True)
class Kind:
    """One kind.

    Attributes:
        problem_type: transformers' word for it, which chooses the loss.
        measure: figures of (logits, labels).
        metrics: the figures a report shows; the first one chooses the epoch.
        known: all figures that ``measure`` may return.
        dtype: of the labels as an array.
    """

    problem_type: str
    measure: Callable[[NDArray[Any], NDArray[Any]], Figures]
    metrics: tuple[str, ...]
    known: tuple[str, ...]
    dtype: Any


KINDS: dict[str, Kind] = {
    "classification": Kind(
        "single_label_classification",
        classification_metrics,
        ("accuracy",),
        ("accuracy", "f1_macro", "matthews", "f1"),
        np.int64,
    ),
    "multi-label": Kind(
        "multi_label_classification",
        multi_label_metrics,
        ("f1_micro", "f1_macro"),
        ("f1_micro", "f1_macro", "accuracy"),
        np.float32,
    ),
    "regression": Kind(
        "regression", regression_metrics, ("pearson", "spearman"), ("pearson", "spearman", "mse"), np.float32
    ),
}


def measure(kind: str, logits: NDArray[Any], labels: NDArray[Any]) -> Figures:
    """Return all figures of a kind of task.

    Args:
        kind: a key of :data:`KINDS`.
        logits: (examples, labels).
        labels: as an :class:`dsee.tasks.encode.Encoded` has them.
    """
    return KINDS[kind].measure(logits, labels)


def shown_metrics(kind: str, wanted: str | None, usual: tuple[str, ...] | None, labels: int) -> tuple[str, ...]:
    """Return the figures that a report shows, the one that chooses the epoch first.

    Args:
        kind: a key of :data:`KINDS`.
        wanted: what the recipe asks to choose by; None for the first of the usual ones.
        usual: those of a benchmark; None for the kind's.
        labels: how many there are.

    Raises:
        InputError: the wanted one does not exist, or not for this kind of task.
    """
    shown = usual or KINDS[kind].metrics
    if wanted is None:
        return shown
    known = KINDS[kind].known
    if wanted not in known:
        raise InputError(f"metric: {wanted!r} is none of {kind}.{nearest(wanted, known)} Known here: {listed(known)}.")
    if wanted == "f1" and labels != 2:
        raise InputError(f"metric: 'f1' needs two classes, and there are {labels}. Use 'f1_macro'.")
    return (wanted, *(name for name in shown if name != wanted))
