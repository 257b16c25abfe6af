"""The kernels' attention inside transformers models, through transformers' own registry of attention functions."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from dsee.kernels import attention
from dsee.kernels.linear import kernels_can

#: What the model's config calls it.
NAME = "dsee"
#: What it stands in for, and goes back to.
STANDARD = "sdpa"
#: Fewer queries leave most of a tile empty; a decoder's next token is torch's.
FEWEST_QUERIES = 4
#: What changes the scores and is not computed here.
FOREIGN = ("softcap", "s_aux", "position_bias", "cache", "output_attentions")


def forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers asks for it: by the kernels where they can, else as "sdpa" does.

    Args:
        module: the attention module.
        query: (batch, heads, queries, dim).
        key: (batch, kv heads, keys, dim).
        value: like ``key``.
        attention_mask: bool or float (batch, 1 or heads, queries, keys), or None.
        dropout: of the probabilities.
        scaling: of the scores; None for 1 / sqrt(dim).
        is_causal: whether a query without a mask sees earlier keys only; None asks the module.
        **kwargs: for "sdpa".

    Returns:
        (batch, queries, heads, dim), and None for the probabilities.
    """
    mask: Any = attention_mask
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    causal = causal and query.shape[2] > 1 and mask is None
    plain = (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]  # public, but not named in __all__
        and not dropout
        and query.shape[2] >= FEWEST_QUERIES
        and key.shape == value.shape
        and all(kwargs.get(name) is None or kwargs[name] is False for name in FOREIGN)
        and takes_mask(mask)
        and kernels_can(query, key, value, mask)
    )
    if not plain:
        found = sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
        return found[0], None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attention(query, key, value, mask, scale=scale, causal=causal), None


def takes_mask(mask: torch.Tensor | None) -> bool:
    """Whether the kernels know a mask of this form: none, or four dimensions of bool or float32.

    Args:
        mask: as transformers' sdpa takes it.
    """
    return mask is None or (mask.dim() == 4 and mask.dtype in (torch.bool, torch.float32))


def register() -> None:
    """Make the function known to transformers under its name; can be repeated."""
    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def base_of(model: nn.Module) -> PreTrainedModel | None:
    """Return the transformers model that has "sdpa" in its config, under PEFT or not; None where there is none.

    Args:
        model: any model.
    """
    found = model.get_base_model() if isinstance(model, PeftModel) else model
    if isinstance(found, PreTrainedModel) and found.config._attn_implementation in (STANDARD, NAME):
        return found
    return None
