"""One batch shared out among processes, so that a step is the step that one process makes on the whole of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from dsee.errors import InputError
from dsee.modes import evaluating
from dsee.processes import count, index, leads, shared
from dsee.tasks.stream import Streamed
from dsee.training.distillation import IGNORE
from dsee.training.recipe import Recipe
from dsee.training.teacher import DistillationTrainer

#: Key of a batch that says whether its rows only keep the process in step, since the whole batch had too few.
STAND_IN = "dsee_stand_in"
#: Apart from the others', the seed of a process's dropout.
APART = 1_000_003

Rows = list[dict[str, Any]]


def check_batches(recipe: Recipe, processes: int) -> None:
    """Refuse a batch that cannot be shared out evenly; a recipe's ``batch_size`` is that of all processes together.

    Args:
        recipe: the recipe.
        processes: how many there are.

    Raises:
        InputError: the first such stage, or something that only one process can do.
    """
    stages: dict[str, Any] = {"tune": recipe.tune} | ({"recover": recipe.recover} if recipe.prune else {})
    for name, stage in stages.items():
        if stage.batch_size % processes:
            below = stage.batch_size // processes * processes or processes
            raise InputError(
                f"{name}.batch_size={stage.batch_size} cannot be shared out among {processes} processes: it is the "
                f"batch of all of them together. Give a multiple of {processes}, such as {below}, or start a number "
                "of processes that divides it."
            )
    if processes > 1 and recipe.prune and recipe.recover.distill and recipe.recover.distill.hidden:
        raise InputError(
            "recover.distill.hidden: the distance of hidden states is relative to the whole batch, and "
            f"{processes} processes see a part of it each. Run in one process, or leave hidden out."
        )


class Shares(torch.utils.data.IterableDataset[tuple[Rows, bool]]):
    """This process's rows of every batch, and whether they are only a stand-in; every row is somebody's, once."""

    def __init__(self, data: Any, size: int, order: Any) -> None:
        """Begin.

        Args:
            data: the rows.
            size: rows of a whole batch.
            order: a loader of one process, whose batches these are; None for a stream.
        """
        self.data, self.size, self.order = data, size, order

    def __len__(self) -> int:
        if self.order is None:
            raise TypeError("nobody knows how long a stream is")
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Have the next pass in an order of its own.

        Args:
            epoch: its number.
        """
        (self.data if self.order is None else self.order).set_epoch(epoch)

    def _batches(self) -> Iterator[Rows]:
        if self.order is not None:
            # drawn once: the others' random numbers went apart with their dropout
            for places in shared(list(self.order.batch_sampler) if leads() else []):
                yield [self.data[place] for place in places]
            return
        rows: Rows = []
        for row in self.data:
            rows.append(row)
            if len(rows) == self.size:
                yield rows
                rows = []
        if rows:
            yield rows

    def __iter__(self) -> Iterator[tuple[Rows, bool]]:
        for rows in self._batches():
            mine = rows[index() :: count()]
            yield (mine, False) if mine else (rows[:1], True)


def counted(labels: torch.Tensor) -> int:
    """Return how many terms the mean of a batch's loss has: tokens that are learned, or rows.

    Args:
        labels: (rows, tokens) whole numbers of a model that writes; (rows,), or (rows, labels) of 0.0 and 1.0.
    """
    if labels.dim() == 2 and not labels.is_floating_point():
        # the first token is nobody's next one
        return int((labels[:, 1:] != IGNORE).sum())
    return len(labels)


def leaves_unused(model: torch.nn.Module, batch: Any) -> bool:
    """Whether something that is trained has no part in the loss, for which the other processes would wait.

    Args:
        model: the model; its mode is restored, and no gradient is kept.
        batch: a batch with labels.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    inputs = {key: value.to(trained[0].device) if torch.is_tensor(value) else value for key, value in batch.items()}
    with evaluating(model), torch.enable_grad():
        found = torch.autograd.grad(model(**inputs).loss, trained, allow_unused=True)
    return any(gradient is None for gradient in found)


class _Sharing(Trainer):
    """What a Trainer does differently as one of several."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # the weights below make one mean of all; theirs would come on top, and only for losses that know of them
        self.model_accepts_loss_kwargs = False

    def get_train_dataloader(self) -> Any:
        """Return this process's share of the batches that one process would learn from."""
        from accelerate.data_loader import DataLoaderShard, prepare_data_loader

        data, size = self.train_dataset, self._train_batch_size * count()
        order = None
        if not isinstance(data, Streamed):
            grouped = self.args.train_sampling_strategy == "group_by_length"
            sampler = LengthGroupedSampler(size, dataset=data) if grouped else torch.utils.data.RandomSampler(data)
            whole: Any = torch.utils.data.DataLoader(data, batch_size=size, sampler=sampler)
            order = prepare_data_loader(
                whole, num_processes=1, process_index=0, put_on_device=False, use_seedable_sampler=True
            )
        pad = self._get_collator_with_removed_columns(self.data_collator, description="Training")

        def collate(share: tuple[Rows, bool]) -> dict[str, Any]:
            rows, stand_in = share
            return {**pad(rows), STAND_IN: stand_in}

        shares: Any = Shares(data, size, order)
        return DataLoaderShard(shares, device=self.accelerator.device, batch_size=None, collate_fn=collate)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        """Return this process's part of the loss of the whole batch, times the number of processes.

        Gradients are averaged over the processes afterwards, so that each has to count by its share: a mean of means
        would weigh the rows of a smaller share more.

        Args:
            model: the model.
            inputs: the share.
            return_outputs: return the model's output too.
            **kwargs: the Trainer's.
        """
        inputs = dict(inputs)
        stand_in = inputs.pop(STAND_IN)
        mine = 0 if stand_in else counted(inputs["labels"])
        loss, output = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        total = torch.tensor(mine, device=loss.device)
        torch.distributed.all_reduce(total)
        # without a term the mean is not a number; the pass itself has to be made, since all make it
        loss = loss * (mine * count() / int(total)) if mine else output.logits.sum() * 0.0
        return (loss, output) if return_outputs else loss


class SharingTrainer(_Sharing):
    """A Trainer as one of several."""


class SharingDistillationTrainer(_Sharing, DistillationTrainer):
    """The same with a teacher."""
