"""The ordered list of steps a model has been through; it travels with the model and is stored in every artifact."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn

from dsee._version import __version__
from dsee.architectures._registry import plain_model

Step = dict[str, Any]

_ATTRIBUTE = "dsee_history"


def history(model: nn.Module) -> list[Step]:
    """Return the steps so far, oldest first, as plain data.

    Args:
        model: a transformers model, with or without PEFT around it.
    """
    return deepcopy(getattr(plain_model(model), _ATTRIBUTE, []))


def record(model: nn.Module, step: str, **facts: Any) -> None:
    """Append a step.

    Args:
        model: the model it was done to.
        step: "tune", "prune", "recover" or "merge".
        **facts: plain data that says how; the same work gives the same facts, so no times and no paths.
    """
    restore(model, [*history(model), {"step": step, "dsee": __version__, **facts}])


def restore(model: nn.Module, steps: list[Step]) -> None:
    """Give a model the history that was stored with it.

    Args:
        model: the model.
        steps: the steps, oldest first.
    """
    setattr(plain_model(model), _ATTRIBUTE, deepcopy(list(steps)))
