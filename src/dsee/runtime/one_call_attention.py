"""Self-attention modules whose query, key and value, and attention between them, are one call of the kernels."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from dsee.architectures._view import LayerView
from dsee.kernels.hooks import watched
from dsee.kernels.linear import OnKernels, kernels_can
from dsee.kernels.matrix import SparseMatrix
from dsee.kernels.self_attention import Projection, fit_together, self_attention
from dsee.runtime import own_attention
from dsee.runtime.activations import mapped_layers
from dsee.runtime.dressed import Dressed, dress, undress

#: What the forward of such a module takes; BERT, RoBERTa, ELECTRA, DistilBERT and their kin.
INPUTS = ({"self", "hidden_states", "attention_mask", "kwargs"}, {"past_key_values"})
#: Where a module keeps the names of its parts.
STATE = "_dsee_parts"


class Parts(NamedTuple):
    """Names inside an attention module.

    Attributes:
        query: the linear that makes the queries.
        key: the keys.
        value: the values.
        output: the linear that joins the heads; "" where it is no part of the module.
        head_size: the attribute that holds a head's width.
    """

    query: str
    key: str
    value: str
    output: str
    head_size: str


class OneCall(Dressed):
    """The forward pass that such modules take."""

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what the original returns: by one call where the kernels have all of it and nothing more is asked.

        Args:
            hidden_states: (batch, tokens, in).
            attention_mask: as transformers' sdpa takes it.
            *args: for the original.
            **kwargs: for the original; with any that says something, the original computes.
        """
        plain = not args and all(given is None or given is False for given in kwargs.values()) and self._plain()
        out = _by_one_call(self, self.__dict__[STATE], hidden_states, attention_mask) if plain else None
        if out is not None:
            return out, None
        original: Any = super().forward
        return cast(
            "tuple[torch.Tensor, torch.Tensor | None]", original(hidden_states, attention_mask, *args, **kwargs)
        )

    def _plain(self) -> bool:
        config: Any = self.config
        return (
            config._attn_implementation == own_attention.NAME
            and not self.training
            and not getattr(self, "is_causal", False)
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()  # type: ignore[attr-defined]  # public, but not named in __all__
        )


def _by_one_call(module: Any, parts: Parts, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
    """What an attention module makes of its input, by one call; None where the kernels cannot."""
    own, dim = module._modules, getattr(module, parts.head_size)
    three = _projections((own[parts.query], own[parts.key], own[parts.value]), x, mask)
    if three is None or not fit_together(*three, dim):
        return None
    scale = getattr(module, "scaling", None) or dim**-0.5
    out = self_attention(x, *three, dim, mask, scale=scale).flatten(2)
    return cast("torch.Tensor", own[parts.output](out)) if parts.output else out


def _projections(
    three: tuple[Any, Any, Any], x: torch.Tensor, mask: torch.Tensor | None
) -> tuple[Projection, Projection, Projection] | None:
    """Query, key and value, if the kernels can compute all of them of this input now."""
    if x.dim() != 3 or x.shape[1] < own_attention.FEWEST_QUERIES or not own_attention.takes_mask(mask):
        return None
    found = []
    for linear in three:
        if not isinstance(linear, OnKernels) or watched(linear):
            return None
        state, own = linear._dsee_sparse, linear._parameters
        if state.activation or not kernels_can(x, cast("torch.Tensor", own["weight"]), *own.values(), mask):
            return None
        # not before the kernels can: after a change it packs the weight again
        matrix = linear.packed()
        if not isinstance(matrix, SparseMatrix):
            return None
        found.append(Projection(matrix, own["bias"], state.side))
    query, key, value = found
    return query, key, value


def fuse_attention(model: nn.Module) -> list[nn.Module]:
    """Let attention modules compute query, key, value and attention in one call, if that gives the same result.

    They do so while the model's config names the kernels' attention.

    Args:
        model: a model with layers on the kernels.

    Returns:
        The modules, for :func:`unfuse_attention`.
    """
    found = []
    for view in mapped_layers(model):
        module, parts = view.part("attention"), _parts(view)
        if parts is None or isinstance(module, OneCall) or not _takes(module):
            continue
        if _same(module, parts):
            module.__dict__[STATE] = parts
            dress(module, OneCall)
            found.append(module)
    return found


def _parts(view: LayerView) -> Parts | None:
    """Names of the parts inside the attention module; None where they are not its children."""
    own = view.architecture
    inside = f"{own.attention}."
    names = [path.removeprefix(inside) for path in (own.query, own.key, own.value)]
    children = view.part("attention")._modules
    if not all(isinstance(children.get(name), OnKernels) for name in names) or len(set(names)) < 3:
        return None
    output = own.output.removeprefix(inside)
    query, key, value = names
    return Parts(query, key, value, output if output in children else "", own.head_size)


def _takes(module: nn.Module) -> bool:
    """Whether a module's forward takes what we know and nothing else."""
    needed, known = INPUTS
    names = set(inspect.signature(type(module).forward).parameters)
    return needed <= names and names <= needed | known and hasattr(module, "config")


def probe(wide: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random hidden states (2, 5, wide) and a mask that hides the second sentence's end, to compare two ways by.

    Args:
        wide: features of a token.
    """
    x = torch.randn(2, 5, wide, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[1, ..., 3:] = False
    return x, mask


def _same(module: Any, parts: Parts) -> bool:
    """Whether one call computes what a module computes, by its values on random numbers."""
    x, mask = probe(getattr(module, parts.query).packed().shape[1])
    with torch.inference_mode():
        mine = _by_one_call(module, parts, x, mask)
        if mine is None:
            return False
        try:
            expected = module(x, mask)
        except (TypeError, ValueError, RuntimeError):
            return False
    known = isinstance(expected, tuple) and len(expected) == 2 and isinstance(expected[0], torch.Tensor)
    return known and torch.allclose(mine, expected[0], rtol=1e-4, atol=1e-5)


def unfuse_attention(modules: list[nn.Module]) -> None:
    """Undo :func:`fuse_attention`.

    Args:
        modules: what it returned.
    """
    undress(modules)
    for module in modules:
        module.__dict__.pop(STATE, None)
