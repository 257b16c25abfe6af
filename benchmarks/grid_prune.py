"""What pruning costs: raw and recovered accuracy over scores, patterns and seeds; can be stopped and taken up again.

    python benchmarks/grid_prune.py first            # runs what is missing, one JSON line for each finished cell
    python benchmarks/grid_prune.py --table          # the table, as Markdown
    python benchmarks/grid_prune.py --table --into docs/results/pruning.md   # the same, into the page

A cell starts from a tuned model, which is tuned and kept the first time it is asked for. Everything is chosen on a
validation part of the training set and reported on the official validation set. One thread.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from grid import append, insert, rows, save, say
from grid_data import TASKS, Part, batches, parts, tensors
from grid_forward import logits
from grid_model import Cell
from grid_train import Feed, evaluate, plain_loss, run, train
from prune_cells import LISTS, PruneCell

ROOT = Path(__file__).parents[1]
DATA = ROOT / "docs" / "results" / "data" / "pruning.jsonl"
TUNED = ROOT / "benchmarks" / "results" / "tuned"
CALIBRATION = 1024

#: How the models to prune were tuned; the update on all linears is what the grid of updates recommends.
STARTS: dict[str, dict[str, Any]] = {
    "all": {"targets": "all", "r": 2, "n_sparse": 64, "lr": 2e-3, "epochs": 3},
    "qv": {"targets": "qv", "r": 8, "n_sparse": 64, "lr": 1e-3, "epochs": 3},
}


def name_of(cell: PruneCell) -> str:
    """What distinguishes a cell from the plain one."""
    plain = asdict(PruneCell())
    own = asdict(cell)
    shown = [f"{f.name}={own[f.name]}" for f in fields(PruneCell) if f.name in ("task", "start", "seed", "score")]
    return " ".join(shown + [f"{k}={v}" for k, v in own.items() if v != plain[k] and f"{k}={v}" not in shown])


def tuned(task: str, start: str, seed: int) -> Any:
    """The tuned model of a task, from its folder; tuned now if it is not there."""
    import dsee

    folder = TUNED / task / start / f"seed{seed}"
    if not folder.is_dir():
        say(f"tuning {task} {start} seed={seed} ...")
        _, model = run(
            Cell(task, seed=seed, **STARTS[start]),
            lambda text: say(f"    {text}"),
        )
        save(model, folder)
    return dsee.load(folder, trainable=True)


def rules_of(cell: PruneCell) -> list[Any]:
    """The rules of a cell."""
    import dsee

    found: list[Any] = []
    if cell.cut.startswith("flops"):
        found.append(dsee.Budget(flops=float(cell.cut.split()[1]), score=cell.score, steps=cell.steps))
    elif cell.cut:
        heads, neurons = (int(part) / 100 for part in cell.cut.split("/"))
        found += [dsee.Heads(heads, score=cell.score), dsee.Neurons(neurons, score=cell.score)]
    if cell.mask == "2:4":
        found.append(dsee.NofM(2, 4, score=cell.score))
    elif cell.mask:
        make = {"weights": dsee.Weights, "blocks": dsee.Blocks, "4x4": partial(dsee.Blocks, shape=(4, 4))}[cell.mask]
        found.append(make(cell.ratio, score=cell.score))
    return found


def calibration(part: Part) -> list[dict[str, torch.Tensor]]:
    """The first training sentences, in batches of like length."""
    some = Part(part.ids[:CALIBRATION], part.types[:CALIBRATION], part.labels[:CALIBRATION])
    return [tensors(some, rows) for rows in batches(some, 32)]


def schedule_of(cell: PruneCell, data: Part) -> Any:
    """The schedule of a cell that masks while it recovers: from 5 % to 60 % of the steps; None for the others."""
    import dsee

    if not cell.gradual:
        return None
    *_, rule = rules_of(cell)
    return dsee.Gradual(
        rule,
        start=0.05,
        end=0.6,
        every=10 if cell.score == "movement" else 50,
        law=cell.gradual,
        regrow=cell.regrow,
        calibration=calibration(data),
    )


def teacher_loss(
    teacher: Any, part: Part, cell: PruneCell
) -> Callable[[torch.Tensor, dict[str, torch.Tensor], list[int]], Any]:
    """The loss of a student whose teacher has answered every training sentence once."""
    import dsee

    feed, answers = Feed(teacher, Cell("sst2")), torch.zeros(len(part.ids), 2)
    teacher.eval()
    with torch.no_grad():
        for some in batches(part, 64):
            answers[some] = logits(teacher, feed.batch(part, some), feed.start)
    how = dsee.Distillation(temperature=cell.temperature, alpha=cell.alpha)
    return lambda found, batch, some: dsee.distillation_loss(found, answers[some], batch["labels"], distillation=how)


def learn_gates(model: Any, cell: PruneCell, feed: Feed) -> None:
    """Put gates on heads and neurons and learn them with the update for one epoch, under the usual l1 penalty."""
    import dsee
    from dsee.pruning.gates import gate_values

    dsee.add_gates(model)
    how = Cell(cell.task, lr=cell.lr, epochs=1, seed=cell.seed)
    penalised = lambda found, batch, some: plain_loss(found, batch, some) + dsee.gate_penalty(model)  # noqa: E731 - local
    train(model, how, feed, lambda text: say(f"    gates, {text}"), penalised)
    gates = torch.cat([gate.flatten() for gate in gate_values(model).values()]).abs()
    say(f"    |gate|: {[round(gates.quantile(q).item(), 3) for q in (0.0, 0.1, 0.5, 0.9, 1.0)]} (0, 10, 50, 90, 100 %)")


def keep_to_masks(model: Any) -> None:
    """From now on the update is held to whatever masks there are, as with DseeConfig(masked=True) from the start."""
    from dsee.update.layer import DseeLayer

    for module in model.modules():
        if isinstance(module, DseeLayer):
            module.dsee_masked = dict.fromkeys(module.dsee_masked, True)
    for config in model.peft_config.values():
        config.masked = True


def after_merge(model: Any, data: Part, int8: bool) -> dict[str, float]:
    """Accuracy after a masked merge, on request also with every encoder linear on the kernels' 8-bit products.

    Uses the model up: a merge leaves nothing of the update.
    """
    import dsee
    from dsee.kernels import to_kernels

    merged = dsee.merge(model).eval()
    found = {"merged": plain_accuracy(merged, data)}
    if int8:
        for name, module in merged.named_modules():
            if isinstance(module, torch.nn.Linear) and "encoder" in name:
                to_kernels(module, "int8")
        found["recovered_int8"] = plain_accuracy(merged, data)
    return found


def plain_accuracy(model: Any, data: Part) -> float:
    """Accuracy by the model's own forward pass, in percent."""
    right = 0
    with torch.no_grad():
        for some in batches(data, 32):
            inputs = tensors(data, some)
            labels = inputs.pop("labels")
            right += int((model(**inputs).logits.argmax(-1) == labels).sum())
    return round(100.0 * right / len(data.labels), 3)


def prune_and_recover(cell: PruneCell) -> dict[str, Any]:
    """Run one cell.

    Args:
        cell: the cell.
    """
    import dsee

    began = time.process_time()
    data, metric = parts(cell.task), TASKS[cell.task].metric
    model = tuned(cell.task, cell.start, cell.seed)
    feed = Feed(model, Cell(cell.task))
    feed.start = 0
    unpruned = evaluate(model, data["test"], feed)[metric]
    loss = teacher_loss(tuned(cell.task, cell.start, cell.seed), data["train"], cell) if cell.distill else None
    dense = dsee.flops(model, 1, 128)
    torch.manual_seed(cell.seed)
    if cell.masked:
        keep_to_masks(model)
    if cell.score == "gate":
        learn_gates(model, cell, feed)
    schedule = schedule_of(cell, data["train"])
    # what a schedule reaches has no accuracy without recovering
    at_once = rules_of(cell)[: -1 if schedule else None]
    if at_once:
        say(str(dsee.prune(model, *at_once, calibration=calibration(data["train"]))).replace("\n", "; "))
    raw = evaluate(model, data["test"], feed)[metric]
    how = Cell(cell.task, lr=cell.lr, epochs=cell.epochs, seed=cell.seed)
    log = train(model, how, feed, lambda text: say(f"    {text}"), loss or plain_loss, schedule)
    left = dsee.flops(model, 1, 128)
    recovered = evaluate(model, data["test"], feed)[metric]
    merged = after_merge(model, data["test"], cell.mask == "4x4") if cell.mask and metric == "accuracy" else {}
    return {
        "cell": asdict(cell),
        "unpruned": round(unpruned, 3),
        "raw": round(raw, 3),
        "recovered": round(recovered, 3),
        **merged,
        "validation": round(max(entry[metric] for entry in log), 3),
        "encoder_flops": round((left.encoder - left.update) / (dense.encoder - dense.update), 4),
        "effective_flops": round((left.effective - left.update) / (dense.effective - dense.update), 4),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", nargs="*", metavar="LIST", help=f"which cells: {', '.join(LISTS)}; default all")
    parser.add_argument("--only", nargs="+", default=[], help="only cells whose name holds all of these")
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    parser.add_argument("--into", type=Path, help="with --table: a page to put the tables into, between its marks")
    parser.add_argument("--data", type=Path, default=DATA, help="the JSON lines")
    options = parser.parse_args()
    unknown = sorted(set(options.lists) - set(LISTS))
    if unknown:
        sys.exit(f"no list is called {unknown[0]!r}; there are {', '.join(LISTS)}")
    if options.table:
        from prune_table import table

        printed = table(rows(options.data))
        insert(options.into, printed) if options.into else print(printed)
        return
    import transformers

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for cell in dict.fromkeys(cell for each in options.lists or LISTS for cell in LISTS[each]):
        name = name_of(cell)
        done = {name_of(PruneCell(**row["cell"])) for row in rows(options.data)}
        if name in done or not all(part in name for part in options.only):
            continue
        say(f"{name} ...")
        row = prune_and_recover(cell)
        append(options.data, row)
        say(f"    {row['unpruned']} -> {row['raw']} -> {row['recovered']} in {row['cpu_seconds']} s of CPU")


if __name__ == "__main__":
    main()
