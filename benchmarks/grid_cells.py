"""The lists of cells, in the order in which they run; each with the folder name of a model worth keeping, or ''."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from grid_model import Cell

Listed = list[tuple[Cell, str]]

#: A cheap look: half the sentences, once, with the lower half of the layers computed once and kept.
QUICK = Cell("sst2", layers="upper", train_size=8_000, epochs=1)
QUICK_ALL = replace(QUICK, targets="all", r=2, lr=2e-3)


def _variants(cell: Cell, *changes: dict[str, Any]) -> Listed:
    return [(replace(cell, **change), "") for change in changes]


EXPLORE = [
    *_variants(QUICK_ALL, {}, {"lr": 4e-3}, {"lr": 1e-3}),
    *_variants(QUICK, {"lr": 1e-3}, {"lr": 2e-3}),
    *_variants(
        QUICK_ALL,
        {"targets": "all+pooler"},
        {"bias": "dsee_only"},
        {"lr_u": 4.0, "lr": 1e-3},
        {"lr_u": 16.0, "lr": 5e-4},
        {"n_sparse": 0},
        {"n_sparse": 1024},
        {"targets": "ffn", "r": 4},
        {"seed": 1},
        {"scale": 1.0},
        {"scale": 16.0},
        {"lr_s": 10.0},
        {"support": "random"},
        {"support": "magnitude"},
        {"lr_head": 4.0},
        {"pooler": True},
        {"n_sparse": 256},
        {"r": 4},
        {"r": 1},
        {"weight_decay": 0.01},
        {"warmup": 0.0},
        {"seed": 2},
    ),
    *_variants(QUICK, {"method": "lora"}, {"lr": 4e-3}, {"lr": 5e-4}),
]

LISTS: dict[str, Listed] = {"explore": EXPLORE}
