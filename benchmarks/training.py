"""One training step with a DSEE update against PEFT's LoRA and Supertuning and full fine-tuning, in the same run.

Forward, backward and AdamW on query and value, r=16, N=64, one thread. Variants take turns in one process; what counts
is the ratio. "defaults" are what transformers and PEFT give who sets nothing: dropout 0.1 in the base, none in the
adapter. "dropout 0.1 everywhere" is LoRA as its examples set it up, with dropout on the adapter's input too.

Peak memory is what the operating system saw (VmHWM, reset after the model is built) in a child process for each
variant, so that temporaries inside the kernels count and one variant's leavings do not. Saved activations are the
distinct storages that autograd keeps for the backward pass, parameters left out.

    python benchmarks/training.py [SHAPE ...] [--part time | memory]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, SupertuningConfig, get_peft_model
from transformers import BertForSequenceClassification

import dsee
from common import SHAPES, config, cpu_seconds, keep
from dsee.measure.sample import sample_inputs
from dsee.tasks.encode import Encoded
from dsee.training.fit import set_attention_dropout, set_dropout
from dsee.training.prefix_cache import ROW, prefix_cache

R, N, SEQUENCE = 16, 64, 128
#: Sentences in a batch: those of BERT-base are fewer, so that all variants fit one machine in one sitting.
BATCH = {"MiniLM-L6": 16, "BERT-base": 4}
ROUNDS = {"MiniLM-L6": 4, "BERT-base": 3}
TARGETS = ["query", "value"]


def lora(dropout: float = 0.0) -> LoraConfig:
    return LoraConfig(task_type="SEQ_CLS", r=R, target_modules=TARGETS, lora_dropout=dropout)


def ours(**more: Any) -> dsee.DseeConfig:
    return dsee.DseeConfig(task_type="SEQ_CLS", r=R, n_sparse=N, target_modules=TARGETS, support="magnitude", **more)


def supertuning(rank: int | None) -> SupertuningConfig:
    return SupertuningConfig(task_type="SEQ_CLS", target_modules=TARGETS, r=rank)


def upper(shape: str) -> dict[str, Any]:
    depth = SHAPES[shape]["num_hidden_layers"]
    return {"layers_to_transform": list(range(depth // 2, depth))}


#: name -> (adapter's configuration or None for full fine-tuning, base dropout, attention dropout)
VARIANTS: dict[str, tuple[Callable[[str], Any], float, float]] = {
    "LoRA, dropout 0.1 everywhere": (lambda _: lora(0.1), 0.1, 0.1),
    "LoRA, defaults": (lambda _: lora(), 0.1, 0.1),
    "LoRA, no dropout": (lambda _: lora(), 0.0, 0.0),
    "DSEE, defaults": (lambda _: ours(), 0.1, 0.1),
    "DSEE, attention dropout off": (lambda _: ours(), 0.1, 0.0),
    "DSEE, no dropout": (lambda _: ours(), 0.0, 0.0),
    "DSEE, no dropout, upper half": (lambda shape: ours(**upper(shape)), 0.0, 0.0),
    "Supertuning 1 %, no dropout": (lambda _: supertuning(None), 0.0, 0.0),
    "Supertuning 1 % + r=16, no dropout": (lambda _: supertuning(R), 0.0, 0.0),
    "full, defaults": (lambda _: None, 0.1, 0.1),
    "full, no dropout": (lambda _: None, 0.0, 0.0),
}
CACHED = "DSEE, no dropout, upper half, cached prefix"
REFERENCES = ("LoRA, no dropout", "LoRA, defaults", "LoRA, dropout 0.1 everywhere")


def build(shape: str, variant: str) -> Any:
    torch.manual_seed(0)
    settings, dropout, attention = VARIANTS[variant]
    model: Any = BertForSequenceClassification(config(shape))
    adapter = settings(shape)
    if adapter is not None:
        model = get_peft_model(model, adapter)
    set_dropout(model, dropout)
    set_attention_dropout(model, attention)
    return model.train()


def batch_of(shape: str, model: Any) -> dict[str, torch.Tensor]:
    size = BATCH[shape]
    return sample_inputs(model, size, SEQUENCE) | {"labels": torch.arange(size) % 2}


def stepper(model: Any, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def run() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def saved_bytes(model: Any, batch: dict[str, torch.Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps from the forward pass, parameters and inputs left out."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers(), *batch.values()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # held, so that no freed address is counted for another
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch).loss
    found = sum(storage.nbytes() for storage in kept.values())
    loss.backward()
    model.zero_grad()
    return found


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def child(shape: str, variant: str) -> None:
    """Print the bytes that training takes above what the built model takes."""
    torch.set_num_threads(1)
    model = build(shape, variant)
    batch = batch_of(shape, model)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    run = stepper(model, batch)
    for _ in range(2):
        run()
    print(json.dumps(status("VmHWM") - before))


def peak(shape: str, variant: str) -> int:
    command = [sys.executable, __file__, "--child", shape, variant]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])


def sentences(batch: dict[str, torch.Tensor]) -> Encoded:
    """The rows of a batch as a data set has them."""
    plain = {key: value.tolist() for key, value in batch.items()}
    return Encoded.of([{key: plain[key][i] for key in plain} for i in range(len(plain["labels"]))], "classification")


def stacked(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0] if key != ROW}


def cached(shape: str, stack: ExitStack) -> tuple[Any, dict[str, torch.Tensor], float]:
    """A model that starts above its frozen prefix, a batch for it, and the CPU seconds that the cache took to fill."""
    model = build(shape, "DSEE, no dropout, upper half")
    data = sentences(batch_of(shape, model))
    start = time.process_time()
    (part,), collate = stack.enter_context(prefix_cache(model, [data], stacked))
    # the check of the cache on four sentences is in it, which a real data set would not notice
    filled = time.process_time() - start
    return model, collate(part.features), filled


def times(shape: str) -> dict[str, Any]:
    """Saved bytes and CPU seconds of each variant, and ratios of these to LoRA's."""
    figures: dict[str, dict[str, float]] = {name: {} for name in [*VARIANTS, CACHED]}
    with ExitStack() as stack:
        calls = {}
        for name in VARIANTS:
            model = build(shape, name)
            batch = batch_of(shape, model)
            figures[name]["trainable"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
            figures[name]["saved_bytes"] = saved_bytes(model, batch)
            calls[name] = stepper(model, batch)
        model, batch, filled = cached(shape, stack)
        figures[CACHED] |= {"saved_bytes": saved_bytes(model, batch), "fill_cpu_seconds": filled}
        calls[CACHED] = stepper(model, batch)
        for name, seconds in cpu_seconds(calls, rounds=ROUNDS[shape]).items():
            figures[name]["cpu_seconds"] = seconds
    return with_ratios(figures, "cpu_seconds")


def memory(shape: str) -> dict[str, Any]:
    """Peak bytes above the model of each variant, and ratios of these to LoRA's."""
    return with_ratios({name: {"peak_bytes": peak(shape, name)} for name in VARIANTS}, "peak_bytes")


def with_ratios(figures: dict[str, dict[str, float]], field: str) -> dict[str, dict[str, float]]:
    for row in figures.values():
        row |= {f"over {reference}": row[field] / figures[reference][field] for reference in REFERENCES}
    return figures


def show(shape: str, part: str, found: dict[str, Any]) -> None:
    print(
        f"{shape}, {BATCH[shape]} x {SEQUENCE} tokens, {part}; over LoRA without dropout, defaults, dropout everywhere"
    )
    for name, row in found.items():
        ratios = " ".join(f"{row[f'over {reference}']:5.2f}" for reference in REFERENCES)
        if part == "time":
            shown = f"{row['cpu_seconds']:6.2f} s {ratios}   saved {row['saved_bytes'] / 2**20:5.0f} MiB"
        else:
            shown = f"{row['peak_bytes'] / 2**20:6.0f} MiB {ratios}"
        print(f"  {name:<44}{shown}", flush=True)


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("shapes", nargs="*", default=list(BATCH))
    parser.add_argument("--part", choices=["time", "memory"])
    parser.add_argument("--child", nargs=2)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    for shape in arguments.shapes:
        for part, measure in {"time": times, "memory": memory}.items():
            if arguments.part in (None, part):
                found = measure(shape)
                show(shape, part, found)
                facts = {"batch": BATCH[shape], "sequence": SEQUENCE, "r": R, "n_sparse": N}
                keep(f"training-{part}-{shape}", facts | {"variants": found})


if __name__ == "__main__":
    main()
