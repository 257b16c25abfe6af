"""One training step with a DSEE update against PEFT's LoRA of the same rank, in the same run.

MiniLM shape, batch 16 x 128 tokens, query and value, r=16, N=64, one thread. PEFT's defaults keep the base's dropout;
both are also run without it, which is what the recipes do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertForSequenceClassification

import dsee
from common import config, cpu_seconds, keep
from dsee.measure.sample import sample_inputs
from dsee.training.fit import set_dropout

TARGETS = ["query", "value"]


def step(peft_config: object | None, dropout: float) -> Callable[[], None]:
    torch.manual_seed(0)
    model = BertForSequenceClassification(config("MiniLM-L6"))
    if peft_config is not None:
        model = get_peft_model(model, peft_config)
    set_dropout(model, dropout)
    model.train()
    inputs = sample_inputs(model, 16, 128) | {"labels": torch.arange(16) % 2}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def run() -> None:
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def main() -> None:
    warnings.simplefilter("ignore")

    def lora(dropout: float) -> LoraConfig:
        return LoraConfig(task_type="SEQ_CLS", r=16, target_modules=TARGETS, lora_dropout=dropout)

    def ours() -> dsee.DseeConfig:
        return dsee.DseeConfig(task_type="SEQ_CLS", r=16, n_sparse=64, target_modules=TARGETS, support="magnitude")

    calls = {
        "LoRA, dropout 0.1": step(lora(0.1), 0.1),
        "LoRA, no dropout": step(lora(0.0), 0.0),
        "DSEE, dropout 0.1": step(ours(), 0.1),
        "DSEE, no dropout": step(ours(), 0.0),
        "full, no dropout": step(None, 0.0),
    }
    seconds = cpu_seconds(calls, rounds=6)
    base = seconds["LoRA, dropout 0.1"]
    figures = {name: {"cpu_seconds": value, "ratio": value / base} for name, value in seconds.items()}
    for name, row in figures.items():
        print(f"  {name:<20} {row['cpu_seconds']:.2f} s   {row['ratio']:.2f}")
    keep("update", figures)


if __name__ == "__main__":
    main()
