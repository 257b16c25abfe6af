"""Modules that end a half of a layer, LayerNorm(dense(x) + residual), with sum and norm in one pass of the kernels."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import nn

from dsee.kernels.hooks import watched
from dsee.kernels.linear import OnKernels, kernels_can
from dsee.kernels.norm import add_norm
from dsee.runtime.dressed import Dressed, dress, undress

#: What such a module consists of, and what its forward takes; BERT, RoBERTa, ELECTRA, DeBERTa and their kin.
PARTS = {"dense", "dropout", "LayerNorm"}
INPUTS = ["self", "hidden_states", "input_tensor"]


class ResidualNorm(Dressed):
    """The forward pass that such modules take."""

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        """Return LayerNorm(dense(x) + residual), in one pass where no gradient is asked for.

        Args:
            hidden_states: x, (..., in).
            input_tensor: the residual, (..., out).
        """
        own: Any = self._modules
        dense, norm = own["dense"], own["LayerNorm"]
        weight, bias = norm.weight, norm.bias
        mine = dense(hidden_states)
        plain = (
            not self.training
            and not torch.compiler.is_compiling()
            and mine.shape == input_tensor.shape
            and kernels_can(mine, weight, bias, input_tensor)
            and input_tensor.dtype == torch.float32
            and not watched(norm)
        )
        if not plain:
            return cast("torch.Tensor", norm(own["dropout"](mine) + input_tensor))
        # a hook may have kept what the kernels returned; nobody else can have
        ours = isinstance(dense, OnKernels) and not watched(dense)
        return add_norm(mine, input_tensor, weight, bias, norm.eps, into_a=ours)


def fuse_norms(model: nn.Module) -> list[nn.Module]:
    """Let modules that are made so take sum and norm in one pass, if they then give the same result.

    Args:
        model: a model.

    Returns:
        The modules, for :func:`unfuse_norms`.
    """
    found = []
    for module in model.modules():
        if set(module._modules) != PARTS or isinstance(module, ResidualNorm):
            continue
        norm, dense = module._modules["LayerNorm"], module._modules["dense"]
        plain = type(norm) is nn.LayerNorm and norm.weight is not None and norm.bias is not None
        if not plain or list(inspect.signature(type(module).forward).parameters) != INPUTS or not _same(module, dense):
            continue
        dress(module, ResidualNorm)
        found.append(module)
    return found


def _same(module: nn.Module, dense: Any) -> bool:
    """Whether a module computes LayerNorm(dense(x) + residual), by its values on random numbers."""
    norm: Any = module._modules["LayerNorm"]
    weight = norm.weight
    if weight.dtype != torch.float32 or not weight.is_cpu or len(norm.normalized_shape) != 1:
        return False
    draw = torch.Generator().manual_seed(0)
    wide = getattr(dense, "in_features", 0) or getattr(dense, "nx", 0)
    if not wide:
        return False
    x, residual = torch.randn(1, 2, wide, generator=draw), torch.randn(1, 2, norm.normalized_shape[0], generator=draw)
    with torch.inference_mode():
        try:
            expected = module(x, residual)
            mine = add_norm(dense(x), residual, weight, norm.bias, norm.eps)
        except (TypeError, ValueError, RuntimeError):
            return False
    return isinstance(expected, torch.Tensor) and torch.allclose(mine, expected, rtol=1e-4, atol=1e-5)


def unfuse_norms(modules: list[nn.Module]) -> None:
    """Give modules their classes back.

    Args:
        modules: what :func:`fuse_norms` returned.
    """
    undress(modules)
