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

QV, ALL = Cell("sst2"), Cell("sst2", targets="all", r=2, lr=2e-3)
FULL, LORA = Cell("sst2", method="full", lr=5e-5), Cell("sst2", method="lora")
QV_NAME, ALL_NAME = "qv-r8-n64", "all-r2-n64"


def _with(task: str, seed: int) -> Listed:
    """Both updates on one task and seed, kept for the pruning experiments."""
    return [(replace(QV, task=task, seed=seed), QV_NAME), (replace(ALL, task=task, seed=seed), ALL_NAME)]


TUNED = [(ALL, ALL_NAME), *_with("mrpc", 0)]
FINAL = [(FULL, ""), (LORA, "")]
SEEDS = [pair for seed in (1, 2) for task in ("sst2", "mrpc") for pair in _with(task, seed)]

#: The baselines at their learning rates, one seed; the best ones go into BASELINES with more seeds.
RATES = [
    *_variants(FULL, {"lr": 3e-5}, {"lr": 1e-4}),
    *_variants(LORA, {"lr": 5e-4}, {"lr": 2e-3}),
    *_variants(QV, {"lr": 2e-3}),
    *_variants(ALL, {"lr": 1e-3}, {"lr": 4e-3}),
]
#: What the update's parts are worth at full length.
PARTS = _variants(ALL, {"targets": "all+pooler"}, {"n_sparse": 0}, {"n_sparse": 1024}, {"bias": "dsee_only"})

#: What the options that save time cost.
SPEED = _variants(ALL, {"layers": "upper", "r": 4}, {"dropout": 0.1}, {"dropout": 0.1, "attention_dropout": 0.1})

SMALL = [
    *_variants(replace(FULL, task="mrpc"), {}, {"lr": 1e-4}),
    *_variants(replace(LORA, task="mrpc"), {}, {"lr": 2e-3}),
    *[(replace(cell, task="cola"), "") for cell in (ALL, QV, FULL, LORA, replace(FULL, lr=1e-4))],
]
BASELINES = [(replace(cell, seed=seed), "") for seed in (1, 2) for cell in (FULL, LORA)]

#: What might close the gap to full fine-tuning, one seed.
CLOSE = [
    (FULL, ""),
    *_variants(ALL, {"targets": "all+pooler"}, {"dropout": 0.1}),
    (LORA, ""),
    *_variants(ALL, {"targets": "all+pooler", "dropout": 0.1}),
    (replace(FULL, lr=1e-4), ""),
]

#: The best update and the baselines at full length, with two more seeds.
BEST = replace(ALL, targets="all+pooler")
PAIRED = [(replace(cell, seed=seed), "") for seed in (1, 2) for cell in (BEST, FULL, LORA)]

#: The best update with the base's dropout, which overfits less; three seeds.
REGULAR = [(replace(BEST, dropout=0.1, seed=seed), "") for seed in range(3)]
REGULAR += [(replace(BEST, dropout=0.1, lr=3e-3), "")]

#: The best update beside the baselines on the small sets, at each one's likely rates.
_OTHER_RATES = (replace(FULL, lr=1e-4), replace(LORA, lr=2e-3), replace(BEST, lr=4e-3))
SMALL_BEST = [
    (replace(cell, task=task, epochs=epochs), "")
    for cells in ((BEST, FULL, LORA), _OTHER_RATES)
    for task, epochs in (("cola", 3), ("mrpc", 5))
    for cell in cells
]
#: Lower rates of the update on CoLA, where the higher ones fail, and whether it only needs longer.
SLOWER = [(replace(BEST, task="cola", lr=lr), "") for lr in (1e-3, 5e-4)]
SLOWER += [(replace(cell, task="cola", epochs=6, lr=1e-3), "") for cell in (BEST, LORA)]
SLOWER += [(replace(BEST, task="mrpc", epochs=5, lr=1e-3), "")]
#: The best update and the baselines on MRPC, as long as the updates that pruning starts from there.
PAIRS = [(replace(cell, task="mrpc"), "") for cell in (FULL, LORA, BEST)]
PAIRS += [(replace(cell, task="mrpc"), "") for cell in (replace(FULL, lr=1e-4), replace(LORA, lr=2e-3))]

#: What may close the rest of the gap on SST-2: trained biases and norms, more epochs, all of the base's dropout; and
#: what half the depth costs at full length. The second seed first: there most is missing.
_DROPPED = replace(BEST, dropout=0.1)
_WAYS = ({"bias": "dsee_only", "norms": True}, {"epochs": 5}, {"attention_dropout": 0.1})
CLOSING = [(replace(_DROPPED, seed=1, **way), "") for way in _WAYS]
CLOSING += [(replace(BEST, layers="upper", r=4, seed=1), "")]
CLOSING += [(replace(_DROPPED, seed=seed, **way), "") for way in _WAYS for seed in (0, 2)]
CLOSING += [(replace(BEST, layers="upper", r=4, seed=seed), "") for seed in (0, 2)]

#: One number for each word besides, under half a per cent in all; once over the data, on five seeds, beside full
#: fine-tuning at its best rate for that, and what the words are worth.
_RANKS = {"word_embeddings": 1, "key": 1}
WORDS = replace(BEST, targets="all+pooler+words", rank_pattern=_RANKS, scale_pattern={"word_embeddings": 1.0})
_ONCE = (replace(WORDS, epochs=1), replace(FULL, lr=1e-4, epochs=1))
ONCE = [(replace(cell, seed=seed), "") for seed in range(5) for cell in _ONCE]
#: The same at half the ranks, with S2 where the gradients are largest: a thousand entries a matrix, tuned slowly.
_ENTRIES = {"r": 1, "n_sparse": 1000, "support": "gradient", "lr_s": 0.05, "rank_pattern": {"word_embeddings": 1}}
ONCE += [(replace(WORDS, epochs=1, seed=seed, **_ENTRIES), "") for seed in range(2)]
#: And with biases and norms in their place.
_SMALL_PARTS = {"r": 1, "bias": "dsee_only", "norms": True, "rank_pattern": {"word_embeddings": 1}}
EVERYWHERE = replace(WORDS, **_SMALL_PARTS)
ONCE += [(replace(EVERYWHERE, epochs=1, seed=seed), "") for seed in range(5)]
ONCE += [(replace(BEST, epochs=1, seed=seed), "") for seed in range(5)]

#: The same on Rotten Tomatoes' reviews, where the training set is smaller.
REVIEWS = [
    (replace(cell, task="rotten_tomatoes", seed=seed), "")
    for seed in range(3)
    for cell in (replace(EVERYWHERE, epochs=2), replace(BEST, dropout=0.1), replace(FULL, lr=1e-4, epochs=2))
]

#: CoLA at half the rate and twice as long.
LONGER = [(replace(BEST, task="cola", lr=5e-4, epochs=6, seed=seed), "") for seed in range(3)]
LONGER += [(replace(EVERYWHERE, task="cola", lr=5e-4, epochs=6, seed=seed), "") for seed in (1, 0, 2)]
LONGER += [(replace(FULL, task="cola", lr=1e-4, epochs=6, seed=seed), "") for seed in range(3)]

#: Two more seeds on the small sets, each way at the best of its rates.
SMALL_SEEDS = [
    (replace(cell, task=task, seed=seed), "")
    for seed in (1, 2)
    for task, cells in (
        ("cola", (replace(FULL, lr=1e-4), replace(BEST, lr=1e-3), LORA)),
        ("mrpc", (FULL, ALL, LORA)),
    )
    for cell in cells
]

#: The same quick look with every layer tuned, beside the baselines.
QUICK_WHOLE = [
    (replace(cell, train_size=8_000, epochs=1), "")
    for cell in (
        FULL,
        replace(ALL, targets="all+pooler", lr=4e-3),
        replace(FULL, lr=1e-4),
        replace(LORA, lr=2e-3),
        replace(QV, lr=2e-3),
        replace(ALL, lr=4e-3),
    )
]

#: Ranks that differ by module: more on the pooler, which nothing has trained for this, or on the upper layers.
_POOLED = replace(QUICK_ALL, targets="all+pooler")
PATTERNS = _variants(
    _POOLED,
    {"rank_pattern": {"pooler.dense": 32}},
    {"targets": "all", "pooler": True},
    {"rank_pattern": {"pooler.dense": 8}},
    {"rank_pattern": {r"encoder\.layer\.5\..*": 4}},
    {"rank_pattern": {"intermediate.dense": 1, "output.dense": 1}, "r": 4},
    {"batch": 16},
    {"lr_head": 4.0},
    {"weight_decay": 0.1},
    {"rank_pattern": {"pooler.dense": 32}, "seed": 1},
    {"seed": 1},
)

LISTS: dict[str, Listed] = {
    "patterns": PATTERNS,
    "once": ONCE,
    "longer": LONGER,
    "reviews": REVIEWS,
    "regular": REGULAR,
    "small-best": SMALL_BEST,
    "slower": SLOWER,
    "closing": CLOSING,
    "small-seeds": SMALL_SEEDS,
    "pairs": PAIRS,
    "quick": QUICK_WHOLE,
    "tuned": TUNED,
    "explore": EXPLORE,
    "close": CLOSE,
    "paired": PAIRED,
    "final": FINAL,
    "speed": SPEED,
    "small": SMALL,
    "parts": PARTS,
    "rates": RATES,
    "seeds": SEEDS,
    "baselines": BASELINES,
}
