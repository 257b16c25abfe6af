"""A BERT classifier's logits and gradients, as the model gives them but without the work that changes nothing.

Three things are left out: in the last layer, everything but the first token (the head reads no other); with updates in
the upper layers only, the layers below them, computed once per sentence; and the update's separate passes over its
output (one fused step for base, low-rank and sparse part). tests/test_grid.py holds it to the model's own figures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from dsee.update import DseeLinear
from dsee.update.masked import keeps_to_mask


class _Updated(torch.autograd.Function):
    """y = x W^T + b + s (x V^T U^T + x S2^T) for x (tokens, in)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        up: torch.Tensor,
        low: torch.Tensor,
        values: torch.Tensor | None,
        rows: torch.Tensor | None,
        columns: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        y = torch.addmm(bias, x, weight.t())
        h = x @ low.t()
        y.addmm_(h, up.t(), alpha=scale)
        if values is not None:
            y.index_add_(1, rows, x.index_select(1, columns).mul_(values * scale))
        ctx.scale = scale
        ctx.save_for_backward(x, weight, up, low, h, values, rows, columns)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, weight, up, low, h, values, rows, columns = ctx.saved_tensors
        grad = grad.contiguous()
        scale, wanted = ctx.scale, ctx.needs_input_grad
        grad_h = (grad @ up).mul_(scale)
        # h^T g, not g^T h: up to ten times faster for small ranks
        grad_up = (h.t() @ grad).mul_(scale).t()
        grad_x = (grad @ weight).addmm_(grad_h, low) if wanted[0] else None
        grad_values = None
        if values is not None:
            gathered = grad.index_select(1, rows)
            grad_values = (gathered * x.index_select(1, columns)).sum(0).mul_(scale)
            if grad_x is not None:
                grad_x.index_add_(1, columns, gathered.mul_(values * scale))
        grad_bias = grad.sum(0) if wanted[2] else None
        return grad_x, None, grad_bias, grad_up, grad_h.t() @ x, grad_values, None, None, None


def linear(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Apply a linear layer, with or without an update around it.

    Args:
        module: the layer.
        x: (batch, tokens, in).
    """
    # gates are hooks, which only the module's own call runs
    plain = not isinstance(module, DseeLinear) or bool(module._forward_pre_hooks)
    if plain or not module.dsee_U or not torch.is_grad_enabled():
        found: torch.Tensor = module(x)
        return found
    (name,) = module.active_adapters
    if keeps_to_mask(module, name):
        masked: torch.Tensor = module(x)
        return masked
    base = module.get_base_layer()
    values = rows = columns = None
    if name in module.dsee_S:
        values = module.dsee_S[name].weight
        rows, columns = module.dsee_S[name].rows_and_columns()
    y: torch.Tensor = _Updated.apply(
        x.reshape(-1, x.shape[-1]),
        base.weight,
        base.bias,
        module.dsee_U[name].weight,
        module.dsee_V[name].weight,
        values,
        rows,
        columns,
        module.dsee_scaling[name],
    )
    return y.view(*x.shape[:-1], -1)


def classifier_of(model: Any) -> Any:
    """The BERT classifier inside a PeftModel, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def embedded(model: nn.Module, batch: dict[str, torch.Tensor], layers: int = 0) -> torch.Tensor:
    """Hidden states (batch, tokens, hidden) that enter a layer.

    Args:
        model: the classifier, or a PeftModel around it.
        batch: ids, types and mask, each (batch, tokens).
        layers: how many layers they have passed.
    """
    bert = classifier_of(model).bert
    x = bert.embeddings(input_ids=batch["input_ids"], token_type_ids=batch["token_type_ids"])
    for layer in bert.encoder.layer[:layers]:
        x = _layer(layer, x, x, batch["attention_mask"])
    found: torch.Tensor = x
    return found


def _layer(layer: Any, x: torch.Tensor, read: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """One layer's output at the positions of ``read``, which are the first of ``x``."""
    attention = layer.attention.self
    shape = (x.shape[0], -1, attention.num_attention_heads, attention.attention_head_size)
    query, key, value = (
        linear(part, source).view(shape).transpose(1, 2)
        for part, source in ((attention.query, read), (attention.key, x), (attention.value, x))
    )
    padded = None if bool(mask.all()) else mask[:, None, None, :].bool()
    drop = attention.dropout.p if layer.training else 0.0
    context = scaled_dot_product_attention(query, key, value, attn_mask=padded, dropout_p=drop)
    out = layer.attention.output
    mixed = out.LayerNorm(out.dropout(linear(out.dense, context.transpose(1, 2).flatten(2))) + read)
    inner = layer.intermediate.intermediate_act_fn(linear(layer.intermediate.dense, mixed))
    found: torch.Tensor = layer.output.LayerNorm(layer.output.dropout(linear(layer.output.dense, inner)) + mixed)
    return found


def logits(model: Any, batch: dict[str, torch.Tensor], start: int = 0) -> torch.Tensor:
    """Logits (batch, classes) of a BERT classifier.

    Args:
        model: the classifier, or a PeftModel around it.
        batch: ids, types and mask, each (batch, tokens); or mask and ``hidden``, (batch, tokens, hidden).
        start: the layer that ``hidden`` enters.
    """
    classifier = classifier_of(model)
    x = batch["hidden"] if "hidden" in batch else embedded(model, batch)
    stack = classifier.bert.encoder.layer
    for layer in stack[start:]:
        x = _layer(layer, x, x[:, :1] if layer is stack[-1] else x, batch["attention_mask"])
    found: torch.Tensor = classifier.classifier(classifier.dropout(classifier.bert.pooler(x)))
    return found
