"""BERT-base shape on an NVIDIA GPU: 2:4 against dense, and a training step of the update against PEFT's LoRA.

Inference: one model with half of each linear's weights masked 2:4, in float16 and bfloat16, dense and as dsee.optimize
leaves it, turn by turn in one process; wall time up to the end of the work on the GPU. Training: forward, backward and
AdamW on query and value, r=16, N=64, autocast to bfloat16, in the same way. Times are of the GPU that is named.

    python benchmarks/gpu.py                                        # measure; JSON goes to benchmarks/results/gpu.json
    python benchmarks/gpu.py --table                                # the tables of what was measured, no GPU needed
    python benchmarks/gpu.py --table --into docs/results/gpu.md     # the same, as a page
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertForSequenceClassification

import dsee
from common import RESULTS, config, keep
from dsee.kernels.two_four import missing
from dsee.measure.sample import sample_inputs

SHAPE = "BERT-base"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
#: (sentences, tokens).
SIZES = ((1, 128), (8, 128), (32, 128), (128, 128), (32, 384))
TRAINED = ((32, 128), (128, 128))
ROUNDS, WARMUP = 50, 10
TARGETS = ["query", "value"]
STORED = RESULTS / "gpu.json"
PAGE = "# On a GPU\n\n{table}\n"


def refuse_without_gpu() -> None:
    """Stop with one line where there is nothing to measure on."""
    if not torch.cuda.is_available():
        sys.exit("gpu.py: torch finds no CUDA device here; run this on a machine with an NVIDIA GPU.")
    why = missing(torch.device("cuda"))
    if why is not None:
        sys.exit(f"gpu.py: {why}.")


def milliseconds(calls: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median wall time of each call up to the end of its work on the GPU; A B C A B C ... in one process."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(WARMUP + rounds):
        for name, call in calls.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            if round_number >= WARMUP:
                found[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in found.items()}


def inference(dtype: str, batch: int, sequence: int) -> dict[str, Any]:
    """Dense against what dsee.optimize leaves, and what it chose."""
    torch.manual_seed(0)
    dense = BertForSequenceClassification(config(SHAPE)).eval()
    dsee.prune(dense, dsee.NofM(2, 4, score="weight"))
    dense = dense.to("cuda", DTYPES[dtype])
    fast = BertForSequenceClassification(dense.config).to("cuda", DTYPES[dtype]).eval()
    fast.load_state_dict(dense.state_dict())
    inputs = sample_inputs(dense, batch, sequence)
    choices = dsee.optimize(fast, inputs, rounds=20)
    with torch.inference_mode():
        times = milliseconds({"dense": partial(dense, **inputs), "2:4": partial(fast, **inputs)})
        difference = (dense(**inputs).logits - fast(**inputs).logits).abs().max().item()
    chosen = Counter(layer.chosen for layer in choices.layers)
    reasons = Counter(layer.reason for layer in choices.layers if layer.reason)
    facts = {"chosen": dict(chosen), "reasons": dict(reasons), "largest_difference": difference}
    return {"dtype": dtype, "batch": batch, "sequence": sequence, "ms": times, **facts}


def training(batch: int, sequence: int) -> dict[str, Any]:
    """One step of each method."""
    settings = {
        "LoRA": LoraConfig(task_type="SEQ_CLS", r=16, target_modules=TARGETS),
        "DSEE": dsee.DseeConfig(task_type="SEQ_CLS", r=16, n_sparse=64, target_modules=TARGETS, support="magnitude"),
    }
    calls, memory = {}, {}
    for name, setting in settings.items():
        torch.manual_seed(0)
        model = get_peft_model(BertForSequenceClassification(config(SHAPE)), setting).cuda().train()
        inputs = sample_inputs(model, batch, sequence) | {"labels": torch.arange(batch, device="cuda") % 2}
        calls[name] = partial(
            step, model, inputs, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        )
        calls[name]()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        calls[name]()
        memory[name] = torch.cuda.max_memory_allocated()
    return {"batch": batch, "sequence": sequence, "ms": milliseconds(calls), "peak_bytes": memory}


def step(model: Any, inputs: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Forward, backward and the optimizer."""
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(**inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def measure() -> dict[str, Any]:
    """All figures, and what they were measured on."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": list(torch.cuda.get_device_capability()),
        "cuda": torch.version.cuda,
        "torch": str(torch.__version__),
        "dsee": dsee.__version__,
        "inference": [inference(dtype, *size) for dtype in DTYPES for size in SIZES],
        "training": [training(*size) for size in TRAINED],
    }


def table(figures: dict[str, Any]) -> str:
    """The stored figures as Markdown."""
    machine = f"one {figures['gpu']} (compute capability {'.'.join(map(str, figures['capability']))})"
    versions = f"torch {figures['torch']}, CUDA {figures['cuda']}"
    lines = [
        f"Measured on {machine}, {versions}, by `benchmarks/gpu.py`; BERT-base shape, random weights.",
        "",
        "| dtype | sentences x tokens | dense | as dsee.optimize leaves it | times as fast | layers as 2:4 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in figures["inference"]:
        dense, fast = row["ms"]["dense"], row["ms"]["2:4"]
        layers = f"{row['chosen'].get('2:4', 0)} of {sum(row['chosen'].values())}"
        lines.append(
            f"| {row['dtype']} | {row['batch']} x {row['sequence']} | {dense:.2f} ms | {fast:.2f} ms "
            f"| {dense / fast:.2f} | {layers} |"
        )
    lines += [
        "",
        "| training step, sentences x tokens | LoRA | DSEE | DSEE over LoRA | peak memory, LoRA | DSEE |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in figures["training"]:
        lora, ours = row["ms"]["LoRA"], row["ms"]["DSEE"]
        peak = {name: f"{value / 1e9:.2f} GB" for name, value in row["peak_bytes"].items()}
        lines.append(
            f"| {row['batch']} x {row['sequence']} | {lora:.1f} ms | {ours:.1f} ms | {ours / lora:.2f} "
            f"| {peak['LoRA']} | {peak['DSEE']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, or show what was measured."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--table", action="store_true", help="print the tables of what was measured; measure nothing")
    parser.add_argument("--into", type=Path, help="with --table: the page to write")
    options = parser.parse_args()
    if options.into and not options.table:
        parser.error("--into goes with --table")
    if not options.table:
        refuse_without_gpu()
        figures = measure()
        keep("gpu", figures)
        print(table(figures))
        return
    if not STORED.is_file():
        sys.exit(f"{STORED} is not there; run this without --table first, on a machine with an NVIDIA GPU")
    text = table(json.loads(STORED.read_text(encoding="utf-8")))
    if options.into:
        options.into.write_text(PAGE.format(table=text), encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
