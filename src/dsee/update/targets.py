"""``target_modules``: names, a regular expression, "all-linear" or a family's default, checked against the model."""

from __future__ import annotations

import re
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from dsee.errors import InputError, listed, nearest


def check_targets(targets: Any, model: nn.Module) -> None:
    """Refuse a name or an expression that fits no layer; PEFT passes over a name in silence if another one fits.

    Args:
        targets: names, matched as suffixes of paths, or one regular expression for whole paths.
        model: the model to adapt.

    Raises:
        InputError: one of them fits nothing; the nearest names are given.
    """
    names = [name for name, _ in model.named_modules() if name]
    if isinstance(targets, str):
        if any(re.fullmatch(targets, name) for name in names):
            return
        raise InputError(
            f"target_modules={targets!r} is a regular expression for whole paths, and none of {type(model).__name__} "
            f"matches; a name goes into a list, as in ['query'].{_hint(targets, model)}"
        )
    for target in sorted(targets):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise InputError(
                f"target_modules: no layer of {type(model).__name__} is called {target!r}.{_hint(target, model)}"
            )


def check_expression(expression: str) -> None:
    """Make sure that a string is a regular expression.

    Args:
        expression: ``target_modules`` as a string.

    Raises:
        InputError: it is not.
    """
    try:
        re.compile(expression)
    except re.error as error:
        raise InputError(f"target_modules={expression!r} is no regular expression: {error}.") from error


def default_targets_missing(model_type: str, model: nn.Module) -> InputError:
    """Return the error for a family whose default targets nobody knows.

    Args:
        model_type: the family.
        model: the model to adapt.
    """
    return InputError(
        f"target_modules: there is no default for {model_type!r} models, so name the layers to adapt, or use "
        f"'all-linear'. The linear layers of this {type(model).__name__} are called "
        f"{listed(sorted(linear_names(model)))}."
    )


def _hint(name: str, model: nn.Module) -> str:
    leaves = sorted(linear_names(model))
    # of a path or an expression the last piece is most like a name
    last = re.split(r"[^\w]+", name.strip("$)*+?"))[-1]
    return f"{nearest(last, leaves)} Its linear layers are called {listed(leaves)}."


def spare_full_modules(config: Any, model: nn.Module) -> None:
    """Keep "all-linear" off what ``modules_to_save`` trains in full: PEFT matches that by the end of the name.

    Args:
        config: the update's; its ``exclude_modules`` grows.
        model: the model to adapt.
    """
    full = tuple(config.modules_to_save or ())
    spared = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.endswith(full)}
    if full and spared and not isinstance(config.exclude_modules, str):
        config.exclude_modules = set(config.exclude_modules or ()) | spared


def linear_names(model: nn.Module) -> set[str]:
    """Return the last names of the model's own linears, not of the parts that PEFT has put into them.

    Args:
        model: the model, perhaps with updates.
    """
    wrappers = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    )
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D, BaseTunerLayer)) and not name.startswith(wrappers)
    }
