"""Whole tuning runs with and without the frozen lower layers cached: CPU seconds, filling the cache included.

MiniLM shape, upper half and upper third adapted, no dropout, 1,024 sentences of 5 to 50 tokens in batches of 32, one
thread; the two runs of a pair follow each other in one process.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import torch
from peft import get_peft_model
from transformers import BertForSequenceClassification

import dsee
from common import config, keep
from dsee.training.fit import fit, set_dropout
from dsee.training.progress import Silent
from dsee.training.recipe import TrainSpec

SENTENCES, VALIDATION, LAYERS = 1024, 128, 6


class Examples:
    """Random sentences as a data set has them."""

    def __init__(self, count: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.features = []
        for i in range(count):
            ids = draw.integers(5, 30000, int(draw.integers(5, 51))).tolist()
            self.features.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": i % 2})

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.features[index]

    @property
    def labels(self) -> Any:
        """Class indices."""
        return np.array([features["labels"] for features in self.features])


class Padder:
    """Pads as a tokenizer does."""

    def pad(self, rows: list[dict[str, Any]], **_: Any) -> dict[str, torch.Tensor]:
        """Return a batch."""
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(key: str) -> torch.Tensor:
            return torch.tensor([row[key] + [0] * (longest - len(row[key])) for row in rows])

        labels = torch.tensor([row["label"] if "label" in row else row["labels"] for row in rows])
        return {"input_ids": padded("input_ids"), "attention_mask": padded("attention_mask"), "labels": labels}

    deprecation_warnings: dict[str, bool] = {}  # noqa: RUF012 - transformers looks for it on each tokenizer


def seconds(first: int, epochs: int, cache: bool) -> float:
    torch.manual_seed(0)
    update = dsee.DseeConfig(
        task_type="SEQ_CLS", target_modules=["query", "value"], layers_to_transform=list(range(first, LAYERS)),
        support="magnitude",
    )  # fmt: skip
    model = get_peft_model(BertForSequenceClassification(config("MiniLM-L6")), update)
    set_dropout(model, 0.0)
    train, validation = Examples(SENTENCES, 1), Examples(VALIDATION, 2)
    start = time.process_time()
    with Silent().stage("tune", 0) as bar:
        fit(model, train, validation, Padder(), TrainSpec(epochs=epochs), seed=0, bar=bar, cache_prefix=cache)
    return time.process_time() - start


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    figures = {}
    for first in (3, 4):
        for epochs in (1, 3, 6):
            plain, cached = seconds(first, epochs, False), seconds(first, epochs, True)
            name = f"layers {first} to {LAYERS - 1} adapted, {epochs} epochs"
            figures[name] = {"cpu_seconds": plain, "cached_cpu_seconds": cached, "ratio": cached / plain}
            print(f"  {name}: {plain:.1f} s, cached {cached:.1f} s, {cached / plain:.2f}", flush=True)
    keep("prefix_cache", figures)


if __name__ == "__main__":
    main()
