"""Files of predictions as GLUE's server takes them (gluebenchmark.com, FAQ)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsee.errors import ArtifactError
from dsee.tasks.glue_tasks import SCORES, GlueTask

HEADER = "index\tprediction"


def predictions(task: GlueTask, logits: NDArray[Any]) -> list[str]:
    """Return what a submission says of each row: a label's name or index, or a score within STS-B's range.

    Args:
        task: the task.
        logits: (rows, labels), in the order of the test split.
    """
    if not task.labels:
        return [f"{score:.3f}" for score in np.clip(logits.reshape(len(logits)), *SCORES)]
    return [task.labels[i] if task.named else str(i) for i in logits.argmax(axis=-1)]


def write_submission(task: GlueTask, logits: NDArray[Any], path: Path) -> int:
    """Write a TSV file with the columns ``index`` and ``prediction``.

    Args:
        task: the task.
        logits: (rows, labels), in the order of the test split.
        path: the file.

    Returns:
        How many rows it has below its header.

    Raises:
        ArtifactError: it could not be written.
    """
    said = predictions(task, logits)
    text = "".join(f"{line}\n" for line in [HEADER, *(f"{i}\t{each}" for i, each in enumerate(said))])
    aside = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise ArtifactError(f"{path} could not be written ({error}). Free some space and run again.") from error
    return len(said)
