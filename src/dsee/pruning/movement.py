"""Movement: importance learned with the update by straight-through gradients (Sanh, Wolf and Rush 2020).

A mask M on W is a step, whose gradient is nothing; passing the gradient straight through it gives dLoss/dM =
dLoss/d(W_eff) * W, with W_eff = W M + dW. Gradient descent on one score per weight then sums S -= dLoss/d(W_eff) * W
over the steps of tuning: a weight that every step would rather have larger gets a high score, one that is pushed
towards zero a low one. W itself stays frozen, so the hooks below make the product grad(y)^T x, one GEMM per matrix and
step, which is what full fine-tuning spends on its weights' gradients; nothing is added to the optimizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn

from dsee.errors import ArtifactError, InputError, OrderError
from dsee.gradients import asking, weight_gradient
from dsee.masks import bare, oriented
from dsee.pruning.targets import Target, mask_targets
from dsee.pruning.weight_scores import WeightScoreInput, register_weight_score

#: Where a bare linear keeps its sums, and where a schedule that lets weights return keeps W as it was.
SUMS, DENSE = "dsee_movement", "dsee_dense"


@dataclass
class Sums:
    """The score of one matrix so far.

    Attributes:
        value: S, (out, in), fp32.
        with_update: W + dW instead of W in the product.
    """

    value: torch.Tensor
    with_update: bool


class Movement:
    """Follows a model through training and sums up how each weight would like to move.

    Use it as a context manager, or call :meth:`close`; :class:`dsee.Gradual` does both by itself for
    ``score="movement"``. Every backward pass in train mode counts, whoever causes it (a plain loop, a Trainer, gradient
    accumulation, gradient checkpointing). A GradScaler's factor ends up in S; it should not change on the way. Memory:
    one fp32 number per weight of the followed matrices.
    """

    def __init__(self, model: nn.Module, *, targets: Sequence[str] | None = None, with_update: bool = False) -> None:
        """Start to follow.

        Args:
            model: a transformers model, with or without updates.
            targets: names of the matrices, matched as suffixes; None for all linears of the transformer layers.
            with_update: rank by W + dW, for masks that a masked merge will put on both; by default by W, which is what
                a mask takes away while tuning.

        Raises:
            OrderError: the model is followed already.
            InputError: a name that fits no matrix.
            ArchitectureError: the family has no map and no name is given.
        """
        self._targets = mask_targets(model, targets)
        if any(hasattr(bare(target.linear), SUMS) for target in self._targets):
            raise OrderError("Movement: this model is followed already. Close the other one first.")
        self._hooks = []
        for target in self._targets:
            zeros = torch.zeros(target.shape, device=bare(target.linear).weight.device)
            setattr(bare(target.linear), SUMS, Sums(zeros, with_update))
            self._hooks.append(target.linear.register_forward_hook(_watch))

    def scores(self) -> dict[str, torch.Tensor]:
        """Return S of each matrix by its path, (out, in) fp32, also for Conv1D; these are not copies."""
        return {target.name: _sums(target).value for target in self._targets}

    def load(self, scores: dict[str, torch.Tensor]) -> None:
        """Go on from stored sums.

        Args:
            scores: as :meth:`scores` returned them.

        Raises:
            ArtifactError: they are not those of this model's matrices.
        """
        mine = self.scores()
        if {n: s.shape for n, s in scores.items()} != {n: s.shape for n, s in mine.items()}:
            raise ArtifactError("Movement: the stored sums are not those of this model's matrices.")
        for name, value in mine.items():
            value.copy_(scores[name])

    def close(self) -> None:
        """Stop following and forget the sums."""
        for hook in self._hooks:
            hook.remove()
        for target in self._targets:
            if hasattr(bare(target.linear), SUMS):
                delattr(bare(target.linear), SUMS)

    def __enter__(self) -> Movement:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def synchronise(model: nn.Module) -> None:
    """Make the sums of all processes their mean; without torch.distributed nothing.

    Args:
        model: the same model on every process.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    processes = torch.distributed.get_world_size()
    for module in model.modules():
        sums = module.__dict__.get(SUMS)
        if sums is not None:
            torch.distributed.all_reduce(sums.value)
            sums.value.div_(processes)


def _sums(target: Target) -> Sums:
    found = getattr(bare(target.linear), SUMS, None)
    if not isinstance(found, Sums):
        raise OrderError(
            f"score='movement' is learned while tuning, and nobody has followed {target.name}. Tune inside `with "
            "dsee.Movement(model):` and prune before it ends, or use dsee.Gradual, which follows by itself."
        )
    return found


def _watch(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """Add to S when the gradient of this call's output arrives.

    The hook keeps nothing of its own, so that a copy of the model has sums of its own.
    """
    sums = getattr(bare(module), SUMS, None)
    # scores that look at data run the model in eval mode; what they find is not tuning
    if sums is None or not module.training or not torch.is_grad_enabled():
        return output
    y = asking(output)
    x = args[0].detach()

    def arrived(gradient: torch.Tensor) -> None:
        found = weight_gradient(gradient, x)
        # a step whose loss scale was too large for fp16 is skipped by the optimizer too
        found.nan_to_num_(0.0, 0.0, 0.0)
        if sums.value.device != found.device:
            sums.value = sums.value.to(found.device)
        sums.value.addcmul_(found, _weight(module, sums.with_update), value=-1.0)

    y.register_hook(arrived)
    return y


def _weight(module: Any, with_update: bool) -> torch.Tensor:
    """What the mask would take away, (out, in) fp32; of a weight that may return, its old value."""
    kept = getattr(bare(module), DENSE, None)
    weight = (oriented(module) if kept is None else kept).float()
    delta = Target("", module).delta if with_update else None
    return weight if delta is None else weight + delta


@register_weight_score("movement")
@torch.no_grad()
def movement_weight_score(given: WeightScoreInput) -> dict[str, torch.Tensor]:
    """Score by S, the sum over the steps of -dLoss/d(W_eff) * W; see :class:`dsee.Movement`.

    Raises:
        OrderError: nobody has followed the tuning, or not a step has been made.
    """
    scores = {target.name: _sums(target).value.clone() for target in given.targets}
    if not any(score.any() for score in scores.values()):
        raise OrderError(
            "score='movement': no step of tuning has been followed yet, so every score is zero. Tune first, in train "
            "mode, or let a schedule start later."
        )
    return scores


def remember(targets: Sequence[Target]) -> None:
    """Keep W of some matrices as it is now, so that masked weights can return.

    Args:
        targets: the matrices.

    Raises:
        InputError: a W is trained, so that its old value is no longer the right one, or masked already.
    """
    for target in targets:
        if bare(target.linear).weight.requires_grad:
            raise InputError(f"regrow=True: {target.name} is trained itself; only weights of a frozen base can return.")
        if target.mask is not None:
            raise InputError(
                f"regrow=True: {target.name} has a mask already, and a mask of an earlier step only grows."
            )
    for target in targets:
        setattr(bare(target.linear), DENSE, oriented(target.linear).clone())


@torch.no_grad()
def recall(targets: Sequence[Target], *, forget: bool = False) -> None:
    """Write the kept W back, or forget it.

    Args:
        targets: the matrices.
        forget: drop the copies and leave W as it is.
    """
    for target in targets:
        base = bare(target.linear)
        kept = getattr(base, DENSE, None)
        if kept is None:
            continue
        if forget:
            delattr(base, DENSE)
        else:
            oriented(target.linear).copy_(kept)
