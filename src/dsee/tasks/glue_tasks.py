"""The tasks of GLUE (Wang et al. 2019): columns, labels and official metrics as the benchmark has them."""

from __future__ import annotations

from dataclasses import dataclass

from dsee.tasks.kinds import KindName


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
        submission: name of the file of predictions, without its suffix.
        text: column with the sentence, or the first one.
        pair: column with the second sentence.
        labels: names by index; empty for a regression.
        metrics: the official ones, the first of which chooses the epoch.
        named: whether a submission has label names; else it has their indices.
        parts: suffix of a split's name -> suffix of the submission's: MNLI has two of each.
    """

    submission: str
    text: str
    pair: str | None
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    named: bool = False
    parts: tuple[tuple[str, str], ...] = (("", ""),)

    @property
    def kind(self) -> KindName:
        """What its labels are."""
        return "classification" if self.labels else "regression"


_ENTAILMENT = ("entailment", "not_entailment")

GLUE = {
    "cola": GlueTask("CoLA", "sentence", None, ("unacceptable", "acceptable"), ("matthews",)),
    "sst2": GlueTask("SST-2", "sentence", None, ("negative", "positive")),
    "mrpc": GlueTask("MRPC", "sentence1", "sentence2", ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "stsb": GlueTask("STS-B", "sentence1", "sentence2", (), ("pearson", "spearman")),
    "qqp": GlueTask("QQP", "question1", "question2", ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": GlueTask(
        "MNLI",
        "premise",
        "hypothesis",
        ("entailment", "neutral", "contradiction"),
        ("accuracy", "accuracy_mm"),
        named=True,
        parts=(("_matched", "-m"), ("_mismatched", "-mm")),
    ),
    "qnli": GlueTask("QNLI", "question", "sentence", _ENTAILMENT, named=True),
    "rte": GlueTask("RTE", "sentence1", "sentence2", _ENTAILMENT, named=True),
    "wnli": GlueTask("WNLI", "sentence1", "sentence2", tuple(reversed(_ENTAILMENT))),
}

#: The range of STS-B's scores; a prediction beyond is put on its edge.
SCORES = (0.0, 5.0)
