"""An embedding with an update: row i of dW = s (U V + S2) is looked up beside row i of W.

An embedding is a linear layer whose input is one-hot, with W stored as (vocabulary, width). So U is (vocabulary, r), V
is (r, width), and a token gets the rows of V mixed by its r numbers: at r = 1 one number a word, along one direction.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dsee.errors import InputError, listed
from dsee.update.config import DseeConfig
from dsee.update.layer import V_STD, DseeLinear
from dsee.update.sparse_delta import SparseDelta


def check_embedding(base: nn.Module, key: str, model: nn.Module) -> None:
    """Refuse an embedding whose weight another module uses too, or that changes it by itself.

    Args:
        base: a bare embedding.
        key: its path in the model, for the message.
        model: the model it belongs to.

    Raises:
        InputError: it is tied, or has a ``max_norm``.
    """
    if getattr(base, "max_norm", None) is not None:
        raise InputError(
            f"{key}: with max_norm={base.max_norm} this embedding rescales its weights at every call, so that W and dW "
            "would not be what a merge gives. Set max_norm to None first, or leave it out of target_modules."
        )
    weight: Any = base.weight
    # the same module under a second path would stay without its update there
    others = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if module._parameters.get("weight") is weight and name not in (key, f"{key}.base_layer")
    ]
    if others:
        raise InputError(
            f"{key}: its weight is also that of {listed(sorted(others))}, and what is tuned here would be merged into "
            "both. Leave it out of target_modules, or untie them first: tie_word_embeddings=False in the configuration."
        )


class DseeEmbedding(DseeLinear):
    """An Embedding with updates. ``dropout`` is for the inputs of linears; token numbers have none."""

    def update_layer(self, adapter_name: str, config: DseeConfig, key: str) -> None:
        """Give this embedding an update of its own, starting at zero; see :meth:`DseeLayer.update_layer`."""
        super().update_layer(adapter_name, config, key)
        # masks are for matrices that are multiplied by
        self.dsee_masked[adapter_name] = False

    def _new_up(self, rank: int, out_features: int, _: tuple[int, ...] | None) -> Any:
        base: Any = self.get_base_layer()
        up = nn.Embedding(out_features, rank, padding_idx=base.padding_idx)
        with torch.no_grad():
            up.weight.normal_(std=V_STD)
            if base.padding_idx is not None:
                up.weight[base.padding_idx] = 0.0
        return up

    def _folds(self, x: torch.Tensor, name: str) -> bool:  # noqa: ARG002 - the linear's signature
        """Never: a copy of W for the few rows of a batch would cost more than the rows."""
        return False

    def _update(self, x: torch.Tensor, name: str, sparse: bool = True) -> torch.Tensor:
        """Return s (U V + S2) at the rows that token numbers x (...,) name, shape (..., width), fresh."""
        scaling = self.dsee_scaling[name]
        if name in self.dsee_U:
            y: torch.Tensor = (self.dsee_U[name](x) * scaling) @ self.dsee_V[name].weight
        else:
            weight: torch.Tensor = self.dsee_S[name].weight
            y = weight.new_zeros(*x.shape, self.dsee_S[name].in_features)
        return add_sparse_rows(y, x, self.dsee_S[name], scaling) if sparse and name in self.dsee_S else y


def add_sparse_rows(y: torch.Tensor, ids: torch.Tensor, sparse: SparseDelta, scaling: float) -> torch.Tensor:
    """Return ``y + s S2[ids]``.

    While S2 has fewer entries than a row has numbers, each token is held against each entry, which costs less than
    reading its row of W; from then on S2 is written out once for the call.

    Args:
        y: (..., width).
        ids: token numbers, (...,).
        sparse: S2, (vocabulary, width).
        scaling: s.
    """
    sparse.check_once()
    # under autocast the low-rank part has the lower precision
    values = (sparse.weight * scaling).to(y.dtype)
    if sparse.n_sparse <= sparse.in_features:
        rows, columns = sparse.rows_and_columns()
        return y.index_add(-1, columns, (ids.unsqueeze(-1) == rows) * values)
    flat = values.new_zeros(sparse.out_features * sparse.in_features)
    table = flat.index_add(0, sparse.indices.to(torch.int64), values)
    return y + nn.functional.embedding(ids, table.view(sparse.out_features, sparse.in_features))


def embeddings_to_save(model: nn.Module) -> bool | str:
    """Return PEFT's ``save_embedding_layers`` for a model: never because an update sits on an embedding.

    PEFT stores W beside an adapter on layers that are called ``embed_tokens``. W is frozen, and the base has it.

    Args:
        model: a model with updates.
    """
    return False if any(isinstance(module, DseeEmbedding) for module in model.modules()) else "auto"
