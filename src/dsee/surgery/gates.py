"""``dsee.fold_gates``: multiply gates into the weights that read the gated features, where they vanish."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dsee.errors import ArtifactError, OrderError
from dsee.masks import bare, oriented
from dsee.pruning.gates import drop_gate, gated_linears, has_gates
from dsee.steps import record
from dsee.surgery.linear import check_cuttable
from dsee.update.layer import GATE, DseeLayer, any_merged


def fold_gates(model: nn.Module) -> None:
    """Fold every gate into the weights, in place: columns of W, of every adapter's V, and S2's values in them.

    The logits stay as they are, with any adapter or none. W is frozen otherwise; here its columns are scaled, once.
    The gates are parameters no more, so an optimizer made before has to be made afresh.

    Args:
        model: a model that ``dsee.add_gates`` was called on.

    Raises:
        OrderError: no gates, or an update is merged.
        ArtifactError: a gate is NaN or infinite. Nothing has been changed then, nor above.
    """
    if not has_gates(model):
        raise OrderError("fold_gates: this model has no gates. dsee.add_gates(model) puts them on before tuning.")
    fold_present(model)
    record(model, "fold_gates")


def fold_present(model: nn.Module) -> None:
    """Do the work of :func:`fold_gates` as a part of another step; without gates do nothing.

    Args:
        model: any model.

    Raises:
        OrderError: there are gates and an update is merged.
        ArtifactError: a gate is NaN or infinite.
    """
    gated = list(gated_linears(model))
    if gated and any_merged(model):
        raise OrderError("fold_gates: an update is merged into the weights. Call model.unmerge_adapter() first.")
    for name, linear in gated:
        check_cuttable(linear, name)
        if not torch.isfinite(bare(linear)._parameters[GATE]).all():
            raise ArtifactError(f"{name}: a gate is NaN or infinite: tuning has diverged. Tune again, more slowly.")
    for _, linear in gated:
        _fold(linear)


@torch.no_grad()
def _fold(linear: Any) -> None:
    weight = oriented(linear)
    gate = bare(linear)._parameters[GATE].detach()
    # one factor for each input feature of the weight
    spread = gate.repeat_interleave(weight.shape[1] // gate.numel())
    weight.copy_(weight * spread)
    if isinstance(linear, DseeLayer):
        for low in linear.dsee_V.values():
            low.weight.copy_(low.weight * spread)
        for sparse in linear.dsee_S.values():
            sparse.weight.copy_(sparse.weight * spread[sparse.rows_and_columns()[1]])
    drop_gate(linear)
