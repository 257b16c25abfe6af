"""The grid's own machinery: its short cuts change no figure, and a killed run is taken up where it stopped."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from conftest import tiny_bert

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import grid
import grid_forward
import grid_model
import grid_train
from grid_data import Part, batches, metrics, tensors
from grid_model import Cell
from grid_table import table

QV = Cell("sst2", support="magnitude", n_sparse=5, r=2)
WAYS = {
    "query and value": QV,
    "no S2": replace(QV, n_sparse=0),
    "all linears and biases": replace(QV, targets="all+pooler", bias="dsee_only"),
    "upper half": replace(QV, targets="all", layers="upper"),
    "LoRA": replace(QV, method="lora"),
    "full": replace(QV, method="full"),
    "head": replace(QV, method="head"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    tiny_bert(num_hidden_layers=4, num_labels=2).save_pretrained(tmp_path)
    monkeypatch.setattr(grid_model, "model_folder", lambda: tmp_path)
    monkeypatch.setattr(grid_train, "_PREFIXES", {})
    return tmp_path


def part(size=12):
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 9, (size,), generator=draw).tolist()
    ids = [torch.randint(1, 100, (n,), generator=draw).tolist() for n in lengths]
    return Part(ids, [[0] * n for n in lengths], torch.randint(0, 2, (size,), generator=draw).numpy())


def gradients(model, logits, labels):
    model.zero_grad()
    cross_entropy(logits, labels).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cell", WAYS.values(), ids=list(WAYS))
def test_the_short_forward_gives_the_models_own_logits_and_gradients(folder, cell):
    model = grid_model.build(cell).double()
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)
    feed, data = grid_train.Feed(model, cell), part()
    rows = list(range(5))
    short = grid_forward.logits(model, feed.batch(data, rows), feed.start)
    inputs = tensors(data, rows)
    labels = inputs.pop("labels")
    own = model(**inputs).logits
    torch.testing.assert_close(short, own, rtol=0, atol=1e-12)
    found, wanted = gradients(model, short, labels), gradients(model, model(**inputs).logits, labels)
    assert found.keys() == wanted.keys()
    assert len(found) >= 2
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_upper_half_starts_above_the_frozen_layers(folder):
    assert grid_train.Feed(grid_model.build(WAYS["upper half"]), WAYS["upper half"]).start == 2
    assert grid_train.Feed(grid_model.build(QV), QV).start == 0


def test_the_head_starts_alike_in_every_method(folder):
    heads = [grid_model.build(cell).state_dict() for cell in (WAYS["full"], WAYS["head"])]
    assert torch.equal(heads[0]["classifier.weight"], heads[1]["classifier.weight"])
    adapted = {k: v for k, v in grid_model.build(QV).state_dict().items() if "modules_to_save" in k and "weight" in k}
    assert torch.equal(next(iter(adapted.values())), heads[0]["classifier.weight"])
    other = grid_model.build(replace(WAYS["full"], seed=1)).state_dict()
    assert not torch.equal(other["classifier.weight"], heads[0]["classifier.weight"])


def test_each_sentence_is_in_one_batch():
    import random

    data = part(100)
    found = batches(data, 8, random.Random(0))
    assert sorted(i for rows in found for i in rows) == list(range(100))


def test_metrics_of_a_known_table():
    import numpy as np

    found, labels = np.array([1, 1, 1, 0, 0, 0, 0, 1]), np.array([1, 1, 0, 0, 0, 1, 0, 1])
    # 3 true positives, 3 true negatives, 1 false positive, 1 false negative
    assert metrics(found, labels) == {"accuracy": 75.0, "f1": 75.0, "matthews": 50.0}


def test_a_killed_grid_goes_on_with_what_is_missing(folder, monkeypatch):
    data = {"train": part(64), "validation": part(20), "test": part(20)}
    monkeypatch.setattr(grid_train, "parts", lambda *_: data)
    cells = [(replace(QV, epochs=1, seed=seed), "") for seed in (0, 1)]
    path = folder / "rows.jsonl"
    grid.work(cells, path, None)
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{second[:40]}")
    grid.work(cells, path, None)
    again = grid.rows(path)
    assert [row["cell"]["seed"] for row in again] == [0, 1]
    timeless = [{k: v for k, v in row.items() if "seconds" not in k} for row in (again[1], json.loads(second))]
    assert timeless[0] == timeless[1]
    before = path.read_text()
    grid.work(cells, path, None)
    assert path.read_text() == before


def test_the_table_gives_mean_and_spread_and_marks_fewer_seeds():
    def row(accuracy):
        return {
            "validation": {"accuracy": accuracy, "loss": 0.5},
            "test": {"accuracy": accuracy, "loss": 0.5},
            "trained": 1,
            "total": 200,
            "cpu_seconds": 60.0,
        }

    full = replace(QV, method="full")
    printed = table([(QV, row(80.0)), (replace(QV, seed=1), row(82.0)), (full, row(90.0))]).splitlines()
    assert "| 81.0 ± 1.4 |" in next(line for line in printed if "update, query, value" in line)
    assert "0.50%" in next(line for line in printed if "full" in line)
    assert ["(fewer)" in line for line in printed if "| full" in line or "| update" in line] == [True, False]
