"""Distillation: the dense tuned model teaches the pruned one (Hinton, Vinyals and Dean 2015)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from dsee.errors import InputError

#: Label of a position that no loss looks at.
IGNORE = -100


@dataclass(frozen=True)
class Distillation:
    """How much the student listens to whom.

    The loss is ``(1 - alpha) hard + alpha soft + hidden states``, see :func:`distillation_loss`.

    Attributes:
        temperature: softens both distributions; the soft loss is multiplied by its square, so that its gradients keep
            their size.
        alpha: the teacher's share of the loss on the answers: 0 heeds the labels only, 1 the teacher only.
        hidden: weight of the loss on the hidden states; 0 leaves them out, which lets the teacher's logits be computed
            once instead of at every step.
    """

    temperature: float = 2.0
    alpha: float = 0.5
    hidden: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature={self.temperature} is out of range: it is above 0 (1 leaves logits alone).")
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha={self.alpha} is out of range: the teacher's share lies between 0 and 1.")
        if not self.hidden >= 0:
            raise InputError(f"hidden={self.hidden} is out of range: a weight is 0 or more.")
        if not self.alpha and not self.hidden:
            raise InputError("alpha=0 and hidden=0 leave nothing to the teacher. Raise one, or do not distil.")

    def facts(self) -> dict[str, float]:
        """Return the settings as plain data for the history."""
        return asdict(self)


def distillation_loss(
    student: Any,
    teacher: Any,
    labels: torch.Tensor | None = None,
    *,
    distillation: Distillation | None = None,
    attention_mask: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """Return the loss of a student that learns from labels and from a teacher.

    ``(1 - alpha) hard + alpha T^2 KL(softmax(teacher / T) || softmax(student / T)) + hidden x distance``. Logits of a
    single column are a regression; there the soft loss is the mean squared difference. Labels as wide as the logits are
    several at once; there it is the mean over rows and labels of T^2 KL between the two answers, yes or no, to each.
    The distance of hidden states is the squared difference over the teacher's mean square, a mean over the layers above
    the embeddings and over the tokens that are not padding; cut models keep their hidden size, so layers match one to
    one.

    Args:
        student: the student's output, or its logits, (batch, classes) or (batch, tokens, classes).
        teacher: the same of the teacher. No gradient reaches it.
        labels: (batch,) or (batch, tokens), or (batch, classes) of 0 and 1; positions with -100 count in neither loss.
            The hard loss is the one in the student's output if there is one, else cross entropy (mean square for a
            regression) with these.
        distillation: temperature and weights; the defaults by default.
        attention_mask: (batch, tokens), 1 where a token is no padding; for the hidden states.
        causal: the logits of a token speak of the next token's label, as in a language model.

    Returns:
        A scalar, fp32.

    Raises:
        InputError: the outputs do not fit together, or what a loss needs is not there.
    """
    how = distillation or Distillation()
    ours, theirs = _logits(student, "student"), _logits(teacher, "teacher").detach()
    if ours.shape != theirs.shape:
        raise InputError(
            f"The teacher's logits have shape {tuple(theirs.shape)}, the student's {tuple(ours.shape)}: both have to "
            "answer the same batch and have the same classes."
        )
    several = labels is not None and labels.shape == ours.shape and ours.shape[-1] > 1
    total = ours.new_zeros(())
    if how.alpha:
        soft = _soft_several(ours, theirs, how.temperature) if several else None
        total = how.alpha * (_soft(ours, theirs, labels, how.temperature, causal) if soft is None else soft)
    if how.alpha < 1:
        total = total + (1 - how.alpha) * _hard(student, ours, labels, causal)
    if how.hidden:
        total = total + how.hidden * _hidden(student, teacher, attention_mask)
    return total


def _logits(output: Any, who: str) -> torch.Tensor:
    logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor):
        raise InputError(f"The {who}'s output has no logits to distil: give a model's output with logits, or a tensor.")
    return logits.float()


def _rows(
    logits: torch.Tensor, labels: torch.Tensor | None, causal: bool
) -> tuple[torch.Tensor, torch.Tensor | None, Any]:
    """Logits as (rows, classes), labels as (rows,), and which rows count (all if None)."""
    if causal:
        logits = logits[..., :-1, :]
        labels = None if labels is None else labels[..., 1:]
    flat = logits.reshape(-1, logits.shape[-1])
    if labels is None or labels.numel() != flat.shape[0]:
        return flat, None, None
    labels = labels.reshape(-1).to(logits.device)
    return flat, labels, None if labels.is_floating_point() else labels != IGNORE


def _soft(
    ours: torch.Tensor, theirs: torch.Tensor, labels: torch.Tensor | None, temperature: float, causal: bool
) -> torch.Tensor:
    student, _, counted = _rows(ours, labels, causal)
    teacher = _rows(theirs, labels, causal)[0].to(student.device)
    if counted is not None:
        student, teacher = student[counted], teacher[counted]
    if not len(student):
        # a mean over nothing would be NaN
        return ours.sum() * 0.0
    if student.shape[-1] == 1:
        return nn.functional.mse_loss(student, teacher)
    wanted = (teacher / temperature).log_softmax(-1)
    found = (student / temperature).log_softmax(-1)
    divergence = nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def _soft_several(ours: torch.Tensor, theirs: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean of T^2 KL(Bernoulli(teacher / T) || Bernoulli(student / T)) over rows and labels."""
    student, teacher = ours / temperature, theirs.to(ours.device) / temperature
    wanted = teacher.sigmoid()
    binary = nn.functional.binary_cross_entropy_with_logits
    return (binary(student, wanted) - binary(teacher, wanted)) * temperature**2


def _hard(student: Any, logits: torch.Tensor, labels: torch.Tensor | None, causal: bool) -> torch.Tensor:
    loss = None if isinstance(student, torch.Tensor) else getattr(student, "loss", None)
    if isinstance(loss, torch.Tensor):
        return loss.float()
    if labels is not None and labels.shape == logits.shape and logits.shape[-1] > 1:
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
    rows, targets, counted = _rows(logits, labels, causal)
    if targets is None:
        raise InputError("The hard loss needs labels, one for each row of the logits. Pass labels=, or set alpha=1.")
    if rows.shape[-1] == 1:
        return nn.functional.mse_loss(rows.squeeze(-1), targets.to(rows.dtype))
    if counted is not None and not counted.any():
        return logits.sum() * 0.0
    return nn.functional.cross_entropy(rows, targets, ignore_index=IGNORE)


def _hidden(student: Any, teacher: Any, mask: torch.Tensor | None) -> torch.Tensor:
    ours, theirs = (getattr(output, "hidden_states", None) for output in (student, teacher))
    if ours is None or theirs is None:
        raise InputError("hidden > 0 needs hidden states of both models: call them with output_hidden_states=True.")
    if [h.shape for h in ours] != [h.shape for h in theirs]:
        raise InputError(
            f"The hidden states do not match one to one: {len(ours)} of shape {tuple(ours[0].shape)} in the student, "
            f"{len(theirs)} of shape {tuple(theirs[0].shape)} in the teacher."
        )
    distances = []
    # the first ones are the embeddings, which nobody trains
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        target = other.detach().to(mine.device).float()
        difference = mine.float() - target
        if mask is not None:
            counted = mask.to(mine.device).bool()
            difference, target = difference[counted], target[counted]
        distances.append(difference.square().mean() / target.square().mean().clamp_min(1e-12))
    return torch.stack(distances).mean()
