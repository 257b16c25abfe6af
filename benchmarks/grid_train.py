"""One cell of the grid: train, choose the epoch on the validation part, report on the test part."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import dsee
from grid_data import TASKS, Part, batches, metrics, parts, tensors
from grid_forward import embedded, logits
from grid_model import Cell, build, counts, first_trained, groups

#: Batches that a support by gradients is chosen from.
CALIBRATION = 64
_PREFIXES: dict[tuple[int, int], list[torch.Tensor]] = {}


class Feed:
    """Batches of a cell's parts; hidden states below the first trained layer are computed once in a process.

    Attributes:
        start: the layer that the batches enter.
    """

    def __init__(self, model: nn.Module, cell: Cell) -> None:
        self.model = model
        lowest = first_trained(model)
        # dropout makes another prefix at each pass; the head wants the last layer's output, and that for one token only
        last = model.config.num_hidden_layers - 1  # type: ignore[union-attr] - any transformers model
        frozen = not any(p.requires_grad for p in model.parameters())
        # a model that was loaded frozen may have an update anywhere
        self.start = 0 if cell.dropout or cell.attention_dropout or frozen else min(lowest, last)

    def batch(self, part: Part, rows: list[int]) -> dict[str, torch.Tensor]:
        """One padded batch, with its hidden states if there is a frozen prefix."""
        found = tensors(part, rows)
        if not self.start:
            return found
        known = _PREFIXES.get((id(part), self.start)) or self._prefix(part)
        hidden = nn.utils.rnn.pad_sequence([known[i] for i in rows], batch_first=True)
        return found | {"hidden": hidden}

    def _prefix(self, part: Part) -> list[torch.Tensor]:
        known: list[torch.Tensor] = [torch.empty(0)] * len(part.ids)
        mode = self.model.training
        self.model.eval()
        with torch.no_grad():
            for rows in batches(part, 64):
                states = embedded(self.model, tensors(part, rows), self.start)
                for i, state in zip(rows, states, strict=True):
                    known[i] = state[: len(part.ids[i])].clone()
        self.model.train(mode)
        return _PREFIXES.setdefault((id(part), self.start), known)


def evaluate(model: nn.Module, part: Part, feed: Feed) -> dict[str, float]:
    """Metrics and mean cross-entropy of a model on one part."""
    model.eval()
    found = torch.zeros(len(part.ids), 2)
    with torch.no_grad():
        for rows in batches(part, 64):
            found[rows] = logits(model, feed.batch(part, rows), feed.start)
    loss = cross_entropy(found, torch.tensor(part.labels)).item()
    return metrics(found.argmax(-1).numpy(), part.labels) | {"loss": loss}


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def _rate(cell: Cell, steps: int) -> Callable[[int], float]:
    """Linear warm-up, then linear decay to zero."""
    rise = int(cell.warmup * steps)
    return lambda step: min((step + 1) / (rise + 1), (steps - step) / max(steps - rise, 1))


def plain_loss(found: torch.Tensor, batch: dict[str, torch.Tensor], _: list[int]) -> torch.Tensor:
    """Cross-entropy of logits (batch, classes); the third argument is the sentences' places in the training part."""
    return cross_entropy(found, batch["labels"])


def train(
    model: nn.Module,
    cell: Cell,
    feed: Feed,
    say: Callable[[str], None],
    loss: Callable[..., Any] = plain_loss,
    gradual: Any = None,
) -> list[dict[str, float]]:
    """Train a cell's model, leave it at the epoch that is best on the validation part, and return that part's log.

    With a ``dsee.Gradual`` only an epoch at whose end its masks are whole can be the best.
    """
    data, metric = parts(cell.task, cell.train_size), TASKS[cell.task].metric
    torch.manual_seed(cell.seed)
    order = random.Random(cell.seed)
    optimizer = torch.optim.AdamW(groups(model, cell), weight_decay=cell.weight_decay, fused=True)
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    steps = cell.epochs * -(-len(data["train"].ids) // cell.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _rate(cell, steps))
    log: list[dict[str, float]] = []
    best: dict[str, torch.Tensor] = {}
    complete: list[float] = []
    if gradual:
        gradual.attach(model, steps)
    made = 0
    for _ in range(cell.epochs):
        model.train()
        for rows in batches(data["train"], cell.batch, order):
            batch = feed.batch(data["train"], rows)
            loss(logits(model, batch, feed.start), batch, rows).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            made += 1
            if gradual:
                gradual.step(model, made)
        log.append(evaluate(model, data["validation"], feed))
        say(f"epoch {len(log)}: validation {metric} {log[-1][metric]:.1f}")
        if gradual and not gradual.done:
            continue
        if log[-1][metric] > max(complete, default=-101.0):
            best = _state(model)
        complete.append(log[-1][metric])
    if gradual:
        gradual.finish(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in best:
                parameter.copy_(best[name])
    return log


def calibrated(model: nn.Module, cell: Cell) -> None:
    """Choose the support by gradients on some training sentences, where the cell's rule waits for them."""
    part = parts(cell.task, cell.train_size)["train"]
    places = list(range(len(part.ids)))
    random.Random(cell.seed).shuffle(places)
    chosen = [places[i : i + cell.batch] for i in range(0, cell.batch * CALIBRATION, cell.batch)]
    dsee.choose_support(model, calibration=[tensors(part, rows) for rows in chosen])


def run(cell: Cell, say: Callable[[str], None]) -> tuple[dict[str, Any], nn.Module]:
    """Run one cell.

    Args:
        cell: the run.
        say: told what goes on.

    Returns:
        its row of the results, and the tuned model.
    """
    start = time.process_time()
    model = build(cell)
    if cell.method == "dsee" and cell.support == "gradient":
        calibrated(model, cell)
    built = time.process_time() - start
    feed = Feed(model, cell)
    log = train(model, cell, feed, say)
    metric = TASKS[cell.task].metric
    values = [entry[metric] for entry in log]
    data = parts(cell.task, cell.train_size)
    reported = {part: evaluate(model, data[part], feed) for part in ("test", "further") if part in data}
    row = {
        "cell": asdict(cell),
        "validation": {name: round(value, 3) for name, value in log[values.index(max(values))].items()},
        "epochs": [round(value, 3) for value in values],
        **{part: {name: round(value, 3) for name, value in found.items()} for part, found in reported.items()},
        **counts(model),
        "build_seconds": round(built, 1),
        "cpu_seconds": round(time.process_time() - start, 1),
    }
    return row, model
