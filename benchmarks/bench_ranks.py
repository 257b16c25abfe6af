"""One training step with a DSEE update against PEFT's LoRA, over ranks and targets, in the same run.

MiniLM shape, batch 16 x 32 tokens, no dropout anywhere, N=64, AdamW, one thread, CPU seconds, interleaved. At small
ranks matrix libraries are slow at the gradient of LoRA's B; ``dsee.update.thin`` goes round that.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import product

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertForSequenceClassification

import dsee
from common import config, cpu_seconds, keep
from dsee.measure.sample import sample_inputs
from dsee.training.fit import set_dropout

TARGETS = {"query, value": ["query", "value"], "all linears": ["query", "key", "value", "dense"]}
RANKS = (1, 2, 4, 8, 16, 32)


def step(peft_config: object) -> Callable[[], None]:
    torch.manual_seed(0)
    model = get_peft_model(BertForSequenceClassification(config("MiniLM-L6")), peft_config)
    set_dropout(model, 0.0)
    model.train()
    inputs = sample_inputs(model, 16, 32) | {"labels": torch.arange(16) % 2}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def run() -> None:
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def main() -> None:
    warnings.simplefilter("ignore")
    figures = {}
    for (name, targets), rank in product(TARGETS.items(), RANKS):
        common = {"task_type": "SEQ_CLS", "r": rank, "target_modules": targets}
        seconds = cpu_seconds(
            {
                "LoRA": step(LoraConfig(**common)),
                "DSEE": step(dsee.DseeConfig(**common, n_sparse=64, support="magnitude")),
            },
            rounds=9,
            warmup=2,
        )
        ratio = seconds["DSEE"] / seconds["LoRA"]
        print(f"{name:13} r={rank:<3} LoRA {seconds['LoRA']:.3f} s  DSEE {seconds['DSEE']:.3f} s  ratio {ratio:.2f}")
        figures[f"{name}, r={rank}"] = seconds | {"ratio": ratio}
    keep("ranks", figures)


if __name__ == "__main__":
    main()
