"""A model's answers to the parts of a task: what it is reported by, and files of predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dsee.tasks.encode import Encoded, predict
from dsee.tasks.generation import EncodedText
from dsee.tasks.glue import write_submission
from dsee.tasks.glue_tasks import GLUE
from dsee.tasks.kinds import measure
from dsee.tasks.metrics import Figures
from dsee.tasks.stream import Streamed
from dsee.training.progress import Bar
from dsee.training.setting import Setting

Logits = Callable[[Any], NDArray[Any]]


def questions(setting: Setting) -> int:
    """Return how many sentences :func:`figures` asks about.

    Args:
        setting: the run.
    """
    return len(setting.parts["test"]) + sum(len(part) for part in setting.also.values())


def train_size(setting: Setting) -> int:
    """Return how many sentences there are to learn from; 0 for a stream, of which nobody knows.

    Args:
        setting: the run.
    """
    train = setting.parts["train"]
    return 0 if isinstance(train, Streamed) else len(train)


def calibration_rows(setting: Setting, limit: int) -> Any:
    """Return the first sentences of the training part, for scores that look at data.

    Args:
        setting: the run.
        limit: how many.
    """
    train = setting.parts["train"]
    if isinstance(train, Streamed | EncodedText):
        return train.head(limit)
    return Encoded.of(train.features[:limit], train.kind)


def figures(setting: Setting, logits: Logits, progress: Callable[[int], None]) -> Figures:
    """Return all figures of a model on the test part, and the first one on every further part to report on.

    Args:
        setting: the run.
        logits: the model, from a batch to its logits.
        progress: called with the number of sentences done since the last call.
    """
    if setting.writing:
        return setting.writing.loss(logits, "test", progress)

    def of(part: Encoded) -> Figures:
        return measure(part.kind, predict(logits, part, setting.collate, progress=progress), part.labels)

    found = of(setting.parts["test"])
    main = next(iter(found))
    return found | {main + ending: of(part)[main] for ending, part in setting.also.items()}


def submit(setting: Setting, bar: Bar, source: Path, targets: dict[str, Path]) -> dict[str, Any]:
    """Write the predictions of a model on GLUE's test splits, as its server wants them.

    Args:
        setting: the run.
        bar: advanced by the sentences.
        source: the artifact.
        targets: name of a part without labels -> file.
    """
    import dsee
    from dsee.training.fit import torch_logits

    model, rows = dsee.load(source), {}
    for name, target in targets.items():
        bar.note(target.name)
        part = setting.answers_wanted(name)
        logits = predict(torch_logits(model), part, setting.collate, progress=bar.advance)
        rows[target.name] = write_submission(GLUE[str(setting.recipe.data.glue)], logits, target)
    return {"rows": rows}
