"""What logits say, by the kind of task; neither torch nor transformers is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

#: transformers' words for the kinds of task, and ours.
KINDS = {
    "single_label_classification": "classification",
    "multi_label_classification": "multi-label",
    "regression": "regression",
}


@dataclass(frozen=True)
class Choice:
    """The answer to a question.

    Attributes:
        label: the likeliest label; all that are more likely than not, with commas, where there may be several; "score"
            of a regression.
        score: the likeliest label's probability, or the number.
        scores: all probabilities by label, or the number.
    """

    label: str
    score: float
    scores: dict[str, float]


def kind_of(config: Any) -> str:
    """Return "classification", "multi-label" or "regression".

    Args:
        config: a transformers configuration; without a word on it one label is a regression, as transformers has it.
    """
    known = KINDS.get(str(getattr(config, "problem_type", None)))
    return known or ("regression" if getattr(config, "num_labels", 2) == 1 else "classification")


def softmax(logits: Any) -> Any:
    """Return probabilities along the last axis.

    Args:
        logits: (..., labels).
    """
    shifted = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def answer(kind: str, labels: list[str], logits: Any) -> Choice:
    """Return what one row of logits says.

    Args:
        kind: "classification", "multi-label" or "regression".
        labels: their names.
        logits: (labels,).
    """
    if kind == "regression":
        value = round(float(logits[0]), 6)
        return Choice(labels[0], value, {labels[0]: value})
    # tanh does not overflow where exp would
    likely = 0.5 * (1 + np.tanh(0.5 * logits)) if kind == "multi-label" else softmax(logits)
    scores = {label: round(float(p), 6) for label, p in zip(labels, likely, strict=True)}
    # not of the probabilities: two that differ by little round to the same
    best = labels[int(np.argmax(logits))]
    given = [label for label, logit in zip(labels, logits, strict=True) if logit > 0]
    return Choice(",".join(given) if kind == "multi-label" else best, scores[best], scores)
