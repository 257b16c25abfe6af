"""Models with branches of a split merge, on disk: ``config.json`` says where there is a branch and of what size."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from dsee.errors import ArtifactError
from dsee.update.bases import linear_shape
from dsee.update.side import SideBranch, SideConv1D, SideLinear

#: Field of ``config.json``: path of each linear with a branch -> its rank and its number of sparse entries.
SIDES = "dsee_sides"


def sides_of(model: nn.Module) -> dict[str, list[int]]:
    """Return rank and number of sparse entries of each branch, by the path of its linear.

    Args:
        model: a transformers model.
    """
    found = {name: list(module.side_sizes) for name, module in model.named_modules() if isinstance(module, SideBranch)}
    return {name.replace(".base_layer", ""): sizes for name, sizes in found.items()}


def make_room(model: Any, sides: Any) -> None:
    """Put empty branches on a freshly built model's linears.

    Args:
        model: the model; its weights are still to come.
        sides: as from :func:`sides_of`, of this model, or of one with or without a task head around it.

    Raises:
        ArtifactError: the branches do not fit the model.
    """
    if not isinstance(sides, dict):
        raise ArtifactError(f"config.json: {SIDES} has to name linears and the sizes of their branches.")
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    for name, sizes in sides.items():
        linear: Any = None
        for path in (name, name.removeprefix(prefix), prefix + name):
            parent, _, child = path.rpartition(".")
            holder = dict(model.named_modules()).get(parent)
            linear = getattr(holder, child, None) if holder is not None else None
            if isinstance(linear, (nn.Linear, Conv1D)):
                break
        if not isinstance(linear, (nn.Linear, Conv1D)):
            raise ArtifactError(f"config.json: {SIDES} names {name!r}, where this model has no linear.")
        rows, columns = linear_shape(linear)
        fits = isinstance(sizes, list) and len(sizes) == 2 and all(type(n) is int and n >= 0 for n in sizes)
        # a rank above the matrix's own would be no saving, and ranks of several updates add up
        if not fits or sizes[0] > rows + columns or sizes[1] > rows * columns:
            raise ArtifactError(f"config.json: {SIDES}[{name!r}]={sizes} does not fit a {rows} x {columns} matrix.")
        kind = SideConv1D if isinstance(linear, Conv1D) else SideLinear
        setattr(holder, child, kind(linear, *sizes))
