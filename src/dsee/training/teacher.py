"""The teacher beside transformers' Trainer, and its answers computed once where they suffice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from transformers import Trainer

from dsee.errors import InputError
from dsee.modes import evaluating
from dsee.training.distillation import Distillation, distillation_loss

#: Key under which a row or a batch carries the teacher's answer.
ANSWER = "teacher_logits"


class DistillationTrainer(Trainer):
    """A Trainer whose loss listens to a teacher; evaluation reports the student's own loss.

    Args of its own, the others being those of ``transformers.Trainer``:
        teacher: the dense tuned model; it runs in eval mode without gradients and is not changed. None if every row
            carries ``teacher_logits`` (with ``remove_unused_columns=False``).
        distillation: temperature and weights.
    """

    def __init__(
        self, *args: Any, teacher: nn.Module | None = None, distillation: Distillation | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.distillation = distillation or Distillation()
        if teacher is not None and teacher is self.model:
            raise InputError("teacher: this is the student itself. Give the tuned model from before pruning.")
        if teacher is None and self.distillation.hidden:
            raise InputError("hidden > 0 needs the teacher itself: stored logits hold no hidden states.")
        self.teacher = None if teacher is None else teacher.to(self.args.device)
        self.causal = "CausalLM" in type(_plain(self.model)).__name__ or "LMHead" in type(_plain(self.model)).__name__
        # our loss is a mean over the batch, so that the Trainer has to divide it by the accumulation steps
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Return the loss of one batch; see :func:`distillation_loss`.

        Args:
            model: the student.
            inputs: the batch, perhaps with ``teacher_logits``.
            return_outputs: return the student's output too.
            **kwargs: the Trainer's.

        Raises:
            InputError: there is neither a teacher nor its answers.
        """
        inputs = dict(inputs)
        answers = inputs.pop(ANSWER, None)
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        labels = inputs.get("labels")
        asked = inputs | ({"output_hidden_states": True} if self.distillation.hidden else {})
        answers = self._answer(asked) if self.teacher is not None else answers
        if answers is None:
            raise InputError(f"Nobody teaches: pass teacher=, or rows with {ANSWER!r} and remove_unused_columns=False.")
        _, output = super().compute_loss(model, asked, return_outputs=True, **kwargs)
        loss = distillation_loss(
            output,
            answers,
            labels,
            distillation=self.distillation,
            attention_mask=inputs.get("attention_mask"),
            causal=self.causal,
        )
        return (loss, output) if return_outputs else loss

    @torch.no_grad()
    def _answer(self, inputs: dict[str, Any]) -> Any:
        assert self.teacher is not None  # noqa: S101 - the caller has looked
        with evaluating(self.teacher):
            return self.teacher(**{key: value for key, value in inputs.items() if key != "labels"})


def _plain(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class Taught(torch.utils.data.Dataset[dict[str, Any]]):
    """A data set whose rows carry the teacher's answers.

    Without dropout the teacher gives a row the same answer every time, so it is asked once.
    """

    def __init__(self, data: Any, answers: NDArray[Any]) -> None:
        """Put rows and answers together.

        Args:
            data: the rows, as dicts.
            answers: (rows, classes).
        """
        self.data, self.answers = data, answers

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self.data[index]
        return row | {ANSWER: self.answers[index]}


def collate_taught(collate: Callable[[list[dict[str, Any]]], Any]) -> Callable[[list[dict[str, Any]]], Any]:
    """Return a collator that pads rows as another does and stacks the teacher's answers.

    Args:
        collate: makes a padded batch from rows without answers.
    """

    def collated(rows: list[dict[str, Any]]) -> Any:
        batch = collate([{key: value for key, value in row.items() if key != ANSWER} for row in rows])
        batch[ANSWER] = torch.stack([torch.as_tensor(row[ANSWER]) for row in rows])
        return batch

    return collated
