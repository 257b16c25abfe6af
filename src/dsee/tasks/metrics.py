"""Metrics of tasks on texts, by scikit-learn and SciPy, and how each one reads in a table."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Figures = dict[str, float]


@dataclass(frozen=True)
class Metric:
    """How one figure reads.

    Attributes:
        title: its name in tables.
        unit: what stands behind the number.
        digits: how many behind the point.
        higher: whether more is better.
    """

    title: str
    unit: str = ""
    digits: int = 1
    higher: bool = True

    def shown(self, value: float) -> str:
        """Return the figure as text.

        Args:
            value: the figure.
        """
        return f"{value:.{self.digits}f} {self.unit}".rstrip()

    def better(self, value: float, than: float) -> bool:
        """Whether one figure beats another.

        Args:
            value: the one.
            than: the other.
        """
        return value > than if self.higher else value < than


#: All figures that a task may be judged by. Correlations are multiplied by 100, as GLUE reports them.
METRICS = {
    "accuracy": Metric("accuracy", "%"),
    "f1": Metric("F1", "%"),
    "f1_macro": Metric("macro F1", "%"),
    "f1_micro": Metric("micro F1", "%"),
    "matthews": Metric("Matthews"),
    "pearson": Metric("Pearson"),
    "spearman": Metric("Spearman"),
    "mse": Metric("mean squared error", digits=4, higher=False),
    "loss": Metric("loss", digits=4, higher=False),
    "perplexity": Metric("perplexity", digits=2, higher=False),
    "accuracy_mm": Metric("accuracy, mismatched", "%"),
}


def classification_metrics(logits: NDArray[Any], labels: NDArray[Any]) -> Figures:
    """Return accuracy, macro F1 and Matthews' correlation, and with two classes the F1 of the second, times 100.

    Args:
        logits: (examples, classes).
        labels: (examples,) class indices.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    predicted = np.asarray(logits).argmax(axis=-1)
    with warnings.catch_warnings():
        # a part with one label, all found, is worth a remark to scikit-learn
        warnings.filterwarnings("ignore", "A single label was found")
        correlation = matthews_corrcoef(labels, predicted)
    found = {
        "accuracy": 100.0 * float(accuracy_score(labels, predicted)),
        "f1_macro": 100.0 * float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "matthews": 100.0 * float(correlation),
    }
    if np.shape(logits)[-1] == 2:
        found["f1"] = 100.0 * float(f1_score(labels, predicted, zero_division=0))
    return found


_F1 = ("f1_micro", "f1_macro")


def multi_label_metrics(logits: NDArray[Any], labels: NDArray[Any]) -> Figures:
    """Return micro F1, macro F1 and the share of examples with every label right, in percent.

    A label is given where its logit is above 0, that is, its probability above a half.

    Args:
        logits: (examples, labels).
        labels: (examples, labels), 0 or 1.
    """
    from sklearn.metrics import accuracy_score, f1_score

    predicted, wanted = np.asarray(logits) > 0, np.asarray(labels) > 0.5
    # a single column would be taken for two classes, "no" being one of them
    averages = {"f1_micro": "micro", "f1_macro": "macro"} if wanted.shape[-1] > 1 else dict.fromkeys(_F1, "binary")
    return {
        **{
            name: 100.0 * float(f1_score(wanted, predicted, average=average, zero_division=0))
            for name, average in averages.items()
        },
        "accuracy": 100.0 * float(accuracy_score(wanted, predicted)),
    }


def regression_metrics(logits: NDArray[Any], labels: NDArray[Any]) -> Figures:
    """Return Pearson's and Spearman's correlation, times 100, and the mean squared error.

    A model that says the same of everything has no correlation with anything; it counts as 0.

    Args:
        logits: (examples, 1) or (examples,).
        labels: (examples,) numbers.
    """
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_squared_error

    found = np.asarray(logits, dtype=np.float64).reshape(len(labels))
    wanted = np.asarray(labels, dtype=np.float64)
    if len(wanted) < 2:
        correlations = [0.0, 0.0]
    else:
        with warnings.catch_warnings():
            # one warning for constants, one for what is nearly constant
            warnings.simplefilter("ignore")
            correlations = [float(np.nan_to_num(by(wanted, found)[0])) for by in (pearsonr, spearmanr)]
    return {
        "pearson": 100.0 * correlations[0],
        "spearman": 100.0 * correlations[1],
        "mse": float(mean_squared_error(wanted, found)),
    }
