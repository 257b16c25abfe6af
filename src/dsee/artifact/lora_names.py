"""Module names as PEFT's configurations match them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn


def target_names(paths: Iterable[str], base: nn.Module) -> list[str] | str:
    """Return ``target_modules`` that PEFT matches with the given modules and no others.

    Args:
        paths: full paths of the modules.
        base: the model.

    Returns:
        Last names if they suffice, which is what other readers of LoRA know best; else full paths; else, for a model
        with one path at the end of another, a regular expression.
    """
    wanted = set(paths)
    names = [name for name, _ in base.named_modules() if name]

    def exact(targets: set[str]) -> bool:
        return {n for n in names if n in targets or any(n.endswith(f".{t}") for t in targets)} == wanted

    last = {path.rpartition(".")[2] for path in wanted}
    for targets in (last, wanted):
        if exact(targets):
            return sorted(targets)
    return "|".join(re.escape(path) for path in sorted(wanted))


def pattern(values: dict[str, Any], default: Any) -> dict[str, Any]:
    """Return a ``rank_pattern`` or ``alpha_pattern``: the values that differ from the default.

    Args:
        values: full path -> value.
        default: the value of all others.
    """
    odd = {path: value for path, value in sorted(values.items()) if value != default}
    # PEFT matches a key with the end of a path, and takes the first that fits; ^ keeps it to the whole path
    ends = {path for path in odd for other in values if other.endswith(f".{path}")}
    return {f"^{path}" if path in ends else path: value for path, value in odd.items()}
