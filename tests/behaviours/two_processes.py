"""Run by torchrun: every family trains its update in two processes; rank 0 writes what it saw.

torchrun --nproc-per-node 2 two_processes.py OUT.json ddp|fsdp2 FAMILY...
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from behaviours.families import EVERY

STEPS, ROWS = 3, 8


def part_of(batch, rank, world):
    return {name: tensor[rank::world].contiguous() for name, tensor in batch.items()}


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def model_of(family):
    model = family.adapted(init_weights=True)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def trained(model, batches, prepare):
    """Plain SGD, so that the mean of two processes' gradients gives what one process gives on the whole batch."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model, optimizer, backward = prepare(model, optimizer)
    losses = []
    for batch in batches:
        loss = model(**batch).loss
        backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return model, torch.stack(losses)


def compare(family, kind):
    rank, world = dist.get_rank(), dist.get_world_size()
    # rows of equal length, so that each half's mean weighs the same
    whole = [family.batch(labels=True, seed=s, size=ROWS) for s in range(STEPS)]
    for batch in whole:
        batch["attention_mask"].fill_(1)
        if family.task == "CAUSAL_LM":
            batch["labels"] = batch["input_ids"].clone()
    single, expected = trained(model_of(family), whole, lambda m, o: (m.train(), o, torch.Tensor.backward))

    def ddp(model, optimizer):
        accelerator = Accelerator(cpu=True)
        assert accelerator.num_processes == 2
        model, optimizer = accelerator.prepare(model.train(), optimizer)
        return model, optimizer, accelerator.backward

    def fsdp2(model, _optimizer):
        for name, module in list(model.named_modules()):
            # the family's transformer layers, found by their place in a list; what lies inside one goes with it
            *outside, last = name.split(".")
            if (
                last.isdigit()
                and not any(part.isdigit() for part in outside)
                and any(True for _ in module.parameters())
            ):
                fully_shard(module)
        fully_shard(model)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        return model.train(), optimizer, torch.Tensor.backward

    prepare = {"ddp": ddp, "fsdp2": fsdp2}[kind]
    model, losses = trained(model_of(family), [part_of(b, rank, world) for b in whole], prepare)
    dist.all_reduce(losses)
    theirs = {n: p.detach() for n, p in single.named_parameters() if p.requires_grad}
    start = dict(model_of(family).named_parameters())
    worst = moved = 0.0
    ranks_differ = 0.0
    for name, parameter in model.named_parameters():
        name = name.removeprefix("module.")
        if name not in theirs:
            continue
        value = full(parameter.detach())
        worst = max(worst, float((value - theirs[name]).abs().max()))
        moved = max(moved, float((value - start[name]).abs().max()))
        lowest, highest = value.clone(), value.clone()
        dist.all_reduce(lowest, dist.ReduceOp.MIN)
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        ranks_differ = max(ranks_differ, float((highest - lowest).max()))
    return {
        "processes": world,
        "largest_difference_from_one_process": worst,
        "moved": moved,
        "ranks_differ": ranks_differ,
        "loss_difference": float((losses / world - expected).abs().max()),
    }


def main():
    out, kind, *names = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {name: compare(EVERY[name], kind) for name in names}
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()
    # the measuring is done; threads of the sharded model may abort a process that takes the interpreter down under them
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
