"""Tuning the update with transformers' Trainer; the epoch that is best on the validation part wins."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments, set_seed

from dsee.architectures import layers
from dsee.errors import InputError
from dsee.modes import evaluating
from dsee.processes import count, index, uses_gpus
from dsee.pruning import Gradual
from dsee.tasks.encode import Encoded, predict
from dsee.tasks.kinds import measure
from dsee.tasks.metrics import METRICS
from dsee.tasks.stream import Streamed
from dsee.training.distillation import Distillation
from dsee.training.gradual import GradualCallback
from dsee.training.prefix_cache import prefix_cache
from dsee.training.progress import Bar
from dsee.training.recipe import TrainSpec
from dsee.training.reports import Reports, close_reports
from dsee.training.sharded import in_pieces, whole
from dsee.training.shares import APART, SharingDistillationTrainer, SharingTrainer, leaves_unused
from dsee.training.teacher import DistillationTrainer, Taught, collate_taught
from dsee.update.groups import parameter_groups


@dataclass(frozen=True)
class Objective:
    """What tuning works towards, where that is not a figure of labels.

    Attributes:
        evaluate: from a model to its figures on the validation part.
        collate: makes a padded batch.
        label_smoothing: share of the target's probability that is spread over all.
    """

    evaluate: Callable[[Any], dict[str, float]]
    collate: Callable[[list[dict[str, Any]]], Any]
    label_smoothing: float = 0.0


def torch_logits(model: Any) -> Any:
    """Return a function from a batch of tensors to logits, (batch, classes), on the CPU.

    Args:
        model: a model that returns ``logits``.
    """
    device = next(model.parameters()).device

    def run(batch: Any) -> NDArray[Any]:
        inputs = {key: tensor.to(device) for key, tensor in batch.items() if key != "labels"}
        with torch.inference_mode():
            logits: NDArray[Any] = model(**inputs).logits.float().cpu().numpy()
        return logits

    return run


def evaluate(model: Any, data: Encoded, collate: Any, progress: Any = None) -> dict[str, float]:
    """Return the metrics of a model on one part, in eval mode.

    Args:
        model: the model; its mode is restored.
        data: the part.
        collate: makes a padded batch.
        progress: called with the number of examples done.
    """
    with evaluating(model):
        return measure(data.kind, predict(torch_logits(model), data, collate, progress=progress), data.labels)


def set_dropout(model: nn.Module, p: float) -> None:
    """Set every dropout of a model, the update's own excepted.

    Args:
        model: the model.
        p: probability of dropping.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and not {"dsee_dropout", "lora_dropout"} & set(name.split(".")):
            module.p = p


def set_attention_dropout(model: nn.Module, p: float) -> None:
    """Set the dropout of the attention weights, which keeps attention off its fast path.

    Args:
        model: a model of a mapped family.
        p: probability of dropping.

    Raises:
        ArchitectureError: the family has no map.
    """
    for view in layers(model):
        attention = view.part("attention")
        if hasattr(attention, "attention_dropout"):
            attention.attention_dropout = p
        for name, module in attention.named_children():
            # GPT-2 has the dropout of the block's output in the same module
            if isinstance(module, nn.Dropout) and not name.startswith("resid"):
                module.p = p


class KeepBest(TrainerCallback):
    """Evaluates after each epoch, or every so many steps, and remembers the best trained numbers; they are few."""

    def __init__(
        self,
        evaluate: Callable[[Any], dict[str, float]],
        bar: Bar,
        spec: TrainSpec,
        schedule: Gradual | None = None,
        metric: str = "accuracy",
    ) -> None:
        self.evaluate, self.bar, self.spec = evaluate, bar, spec
        self.schedule, self.metric = schedule, metric
        self.seen = 0
        self.best: dict[str, float] = {}
        self.state: dict[str, torch.Tensor] = {}
        self.log: list[dict[str, float]] = []
        self.since_best = 0
        #: told of the figures too, if somebody wants to know
        self.tell: Callable[[dict[str, float]], None] | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:  # noqa: ARG002 - Trainer's signature
        """Move the bar; evaluate if it is time."""
        self.bar.advance()
        if self.spec.eval_steps is not None and state.global_step % self.spec.eval_steps == 0:
            self._look(state, control, model)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:  # noqa: ARG002 - Trainer's signature
        """Evaluate; the earlier epoch wins a tie."""
        if self.spec.eval_steps is None or state.global_step >= state.max_steps:
            self._look(state, control, model)

    def _look(self, state: Any, control: Any, model: Any) -> None:
        if state.global_step == self.seen:
            return
        self.seen = state.global_step
        metrics = self.evaluate(model)
        self.log.append(metrics)
        if self.tell:
            self.tell({f"eval_{name}": value for name, value in metrics.items()})
        judge = METRICS[self.metric]
        self.bar.note(f"validation {judge.title} {judge.shown(metrics[self.metric])}")
        if self.schedule is not None and not self.schedule.done:
            # better, perhaps, but not the model that was asked for
            return
        if not self.best or judge.better(metrics[self.metric], self.best[self.metric]):
            self.best, self.since_best = metrics, 0
            trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
            self.state = {n: whole(value).cpu().clone() for n, value in trained.items()}
        else:
            self.since_best += 1
            if self.spec.patience is not None and self.since_best >= self.spec.patience:
                control.should_training_stop = True


def steps_of(spec: TrainSpec, examples: int) -> int:
    """Return how many optimizer steps a stage takes.

    Args:
        spec: the stage.
        examples: training sentences; of no matter if the stage says how many steps it takes.
    """
    return spec.max_steps or spec.epochs * math.ceil(examples / spec.batch_size)


def _once(distillation: Distillation | None, objective: Objective | None) -> bool:
    """Whether a teacher is asked once for each row instead of at every step."""
    # the answers of a model that writes, a row of the vocabulary for every token, would fill any memory
    return distillation is not None and not distillation.hidden and objective is None


def _taught(teacher: Any, data: Encoded, collate: Any, bar: Bar) -> Taught:
    """The data with the teacher's answers, each asked for once; the bar advances by the examples."""
    start = time.process_time()
    with evaluating(teacher):
        answers = predict(torch_logits(teacher), data, collate, progress=bar.advance)
    bar.note(f"teacher answered {len(data)} sentences in {time.process_time() - start:.0f} CPU s")
    return Taught(data, answers)


def fit(
    model: Any,
    train: Any,
    validation: Any,
    tokenizer: Any,
    spec: TrainSpec,
    *,
    seed: int,
    bar: Bar,
    group_by_length: bool = True,
    cache_prefix: bool = False,
    teacher: Any = None,
    distillation: Distillation | None = None,
    schedule: Gradual | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    metric: str = "accuracy",
    objective: Objective | None = None,
    reports: Reports | None = None,
    fsdp: bool = False,
) -> KeepBest:
    """Tune what is trainable, with a fresh optimizer, and leave the model at its best epoch, in eval mode.

    Args:
        model: a PeftModel or any classifier that returns a loss.
        train: what to learn from.
        validation: what to choose the epoch by.
        tokenizer: pads the batches.
        spec: epochs, learning rate and so on.
        seed: decides the order of the batches and the dropout.
        bar: advanced by one for each step, and by one for each sentence a teacher answers beforehand.
        group_by_length: put sentences of like length into a batch.
        cache_prefix: run the frozen layers below the first trained one only once, see
            :mod:`dsee.training.prefix_cache`.
        teacher: the dense tuned model, if this one is to learn from it too.
        distillation: how.
        schedule: masks that grow on the way; only epochs at whose end its rule holds can be the best one.
        callbacks: more of Trainer's, called before the evaluation at the end of an epoch.
        metric: the validation figure that chooses the epoch, see :data:`dsee.tasks.metrics.METRICS`.
        objective: how that figure is found, if not from the logits of labels.
        reports: who is told of losses and figures on the way.
        fsdp: train a twin that lies in pieces on all processes; the model gets its numbers.

    Returns:
        The callback, with the validation metrics of each epoch.

    Raises:
        InputError: ``cache_prefix`` where the lower layers are not the same in every epoch.
    """
    kept = None if isinstance(train, Streamed) else train
    _check_cacheable(cache_prefix, kept, distillation, schedule)
    pieces = fsdp and count() > 1
    parts, collate = [train, validation], objective.collate if objective else DataCollatorWithPadding(tokenizer)
    taught = _taught(teacher, kept, collate, bar) if _once(distillation, objective) and kept is not None else None
    growing = [] if schedule is None else [GradualCallback(schedule)]
    with prefix_cache(model, parts, collate) if cache_prefix else nullcontext((parts, collate)) as (parts, collate):
        look = objective.evaluate if objective else partial(evaluate, data=parts[1], collate=collate)
        keeper = KeepBest(look, bar, spec, schedule, metric)
        rows = Taught(parts[0], taught.answers) if taught else parts[0]
        common = {"model": in_pieces(model) if pieces else model, "callbacks": [*growing, *callbacks, keeper]}
        with tempfile.TemporaryDirectory(prefix="dsee-") as scratch:
            more = _of_several(None if pieces else model, parts[1], collate)
            more |= _further(taught is None and not cache_prefix, objective, reports)
            steps = steps_of(spec, 0 if kept is None else len(kept))
            arguments = _arguments(scratch, spec, steps, seed, group_by_length and kept is not None, **more)
            trainer = _trainer(common | {"args": arguments}, rows, collate, spec, teacher, distillation)
            _train(trainer, keeper, seed, reports)
    _restore(model, keeper.state)
    model.eval()
    return keeper


def _train(trainer: Trainer, keeper: KeepBest, seed: int, reports: Reports | None) -> None:
    trainer.remove_callback(_printer())
    keeper.tell = trainer.log if trainer.args.report_to else None
    # the first process draws the order of the batches, as if it were alone
    set_seed(seed + APART * index())
    try:
        trainer.train()
    finally:
        close_reports(reports)


def _further(plain: bool, objective: Objective | None, reports: Reports | None) -> dict[str, Any]:
    """Arguments of the Trainer that not every stage has."""
    # a teacher's answers and the number of stored states are in the rows, and no arguments of the model
    found: dict[str, Any] = {"remove_unused_columns": plain}
    found["label_smoothing_factor"] = objective.label_smoothing if objective else 0.0
    return found | (reports.arguments() if reports else {})


def _check_cacheable(
    wanted: bool, kept: Encoded | None, distillation: Distillation | None, schedule: Gradual | None
) -> None:
    if not wanted:
        return
    if schedule is not None or (distillation is not None and distillation.hidden):
        raise InputError(
            "cache_prefix: a schedule of masks and distillation of hidden states need the lower layers in every step. "
            "Set cache_prefix: false."
        )
    if kept is None:
        raise InputError("cache_prefix: a stream is not kept, so neither is what becomes of it. Set it to false.")


def _arguments(
    scratch: str, spec: TrainSpec, steps: int, seed: int, group_by_length: bool, **more: Any
) -> TrainingArguments:
    settings = {"output_dir": scratch, "logging_strategy": "no", "report_to": []} | more
    return TrainingArguments(
        num_train_epochs=spec.epochs,
        max_steps=spec.max_steps or -1,
        learning_rate=spec.learning_rate,
        per_device_train_batch_size=spec.batch_size // count(),
        warmup_steps=math.ceil(spec.warmup * steps),
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        lr_scheduler_type="linear",
        train_sampling_strategy="group_by_length" if group_by_length else "random",
        save_strategy="no",
        disable_tqdm=True,
        seed=seed,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        **settings,
    )


def _of_several(model: nn.Module | None, validation: Any, collate: Any) -> dict[str, Any]:
    """Arguments of the Trainer as one of several processes, with a model that is whole on each of them or None."""
    if count() == 1:
        return {}
    # supports and masks are the only buffers that differ from model to model, and those have been compared
    found: dict[str, Any] = {"ddp_broadcast_buffers": False}
    if model is not None:
        found["ddp_find_unused_parameters"] = leaves_unused(model, collate([validation[0]]))
    return found | ({} if uses_gpus() else {"use_cpu": True})


def groups_of(model: nn.Module, spec: TrainSpec) -> list[dict[str, Any]]:
    """Return the optimizer's groups of one stage, see :func:`dsee.parameter_groups`.

    Args:
        model: the model.
        spec: the stage's learning rates and weight decay.
    """
    return parameter_groups(
        model,
        spec.learning_rate,
        up_ratio=spec.up_ratio,
        sparse_lr=spec.sparse_learning_rate,
        head_lr=spec.head_learning_rate,
        weight_decay=spec.weight_decay,
    )


def _trainer(
    common: dict[str, Any], rows: Any, collate: Any, spec: TrainSpec, teacher: Any, distillation: Distillation | None
) -> Trainer:
    """A plain Trainer, or one with a teacher, or with the answers of one if these are enough."""
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(common["args"])
    common = common | {"optimizers": (kind(groups_of(common["model"], spec), **settings), None)}
    several = count() > 1
    if distillation is None:
        return (SharingTrainer if several else Trainer)(train_dataset=rows, data_collator=collate, **common)
    if isinstance(rows, Taught):
        teacher, collate = None, collate_taught(collate)
    return (SharingDistillationTrainer if several else DistillationTrainer)(
        train_dataset=rows, data_collator=collate, teacher=teacher, distillation=distillation, **common
    )


def _printer() -> Any:
    """What prints a line of its own for each log."""
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


@torch.no_grad()
def _restore(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        if name in state:
            parameter.copy_(state[name])
