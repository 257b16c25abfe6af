"""Learning rates of their own for U, V, S2 and the task head."""

from __future__ import annotations

from typing import Any

from torch import nn

from dsee.errors import InputError, OrderError
from dsee.update.layer import DseeLayer

#: The groups, in the order they are returned in.
GROUPS = ("V", "U", "S2", "head", "head_no_decay")
#: Where an update's layer keeps its parts.
_PARTS = {"dsee_V": "V", "dsee_U": "U", "dsee_S": "S2"}


def parameter_groups(
    model: nn.Module,
    lr: float,
    *,
    up_ratio: float = 1.0,
    sparse_lr: float | None = None,
    head_lr: float | None = None,
    weight_decay: float = 0.0,
    sparse_weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Sort what is trainable into groups for an optimizer.

    Any torch optimizer takes the result: ``torch.optim.AdamW(dsee.parameter_groups(model, 1e-3))``. So does a Trainer:
    ``Trainer(optimizers=(optimizer, None), ...)`` makes its own schedule over the groups' rates.

    U starts at zero and V does not, so that their best rates differ: LoRA+ (Hayou et al. 2024) gives U a multiple of
    V's. S2's few values start at zero on positions where W is large; decaying them would only pull them back there.

    Args:
        model: a PeftModel, or any module; what is no part of an update counts as head.
        lr: learning rate of V, and of all that has none of its own.
        up_ratio: U's learning rate over V's.
        sparse_lr: learning rate of S2; None for ``lr``.
        head_lr: learning rate of the task head, of trained biases and of everything else; None for ``lr``.
        weight_decay: of U, V and the head's matrices; biases and norms have none.
        sparse_weight_decay: of S2.

    Returns:
        Groups with "name", "params", "lr" and "weight_decay"; names are "V", "U", "S2", "head" and "head_no_decay",
        empty ones are left out. Each trainable parameter is in one of them.

    Raises:
        InputError: a rate that is not positive, or a negative decay.
        OrderError: nothing is trainable.
    """
    rates = {
        "V": lr,
        "U": lr * up_ratio,
        "S2": lr if sparse_lr is None else sparse_lr,
        "head": lr if head_lr is None else head_lr,
    }
    rates["head_no_decay"] = rates["head"]
    decays = {"V": weight_decay, "U": weight_decay, "S2": sparse_weight_decay, "head": weight_decay}
    _check(lr, up_ratio, sparse_lr, head_lr, decays)
    found: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for name, parameter in _named_by_group(model):
        found[name].append(parameter)
    if not any(found.values()):
        raise OrderError(
            "parameter_groups: nothing in this model is trainable. Put an update on it with get_peft_model, or load "
            "the artifact with dsee.load(folder, trainable=True)."
        )
    return [
        {"name": name, "params": params, "lr": rates[name], "weight_decay": decays.get(name, 0.0)}
        for name, params in found.items()
        if params
    ]


def _check(
    lr: float, up_ratio: float, sparse_lr: float | None, head_lr: float | None, decays: dict[str, float]
) -> None:
    for name, value in {"lr": lr, "up_ratio": up_ratio, "sparse_lr": sparse_lr, "head_lr": head_lr}.items():
        # not (value <= 0): NaN has to fail too
        if value is not None and not value > 0:
            raise InputError(
                f"parameter_groups: {name}={value} has to be positive; to freeze a part, use requires_grad."
            )
    for name in ("U", "S2"):
        if not decays[name] >= 0:
            field = "weight_decay" if name == "U" else "sparse_weight_decay"
            raise InputError(f"parameter_groups: {field}={decays[name]} has to be 0 or more.")


def _named_by_group(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Each trainable parameter once, under its group's name, in the model's order."""
    parts = {
        id(parameter): group
        for module in model.modules()
        if isinstance(module, DseeLayer)
        for attribute, group in _PARTS.items()
        for parameter in getattr(module, attribute).parameters()
    }
    norms = {
        id(parameter)
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }
    named = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim < 2 or name.endswith("bias") or id(parameter) in norms
        named.append((parts.get(id(parameter), "head_no_decay" if plain else "head"), parameter))
    return named
