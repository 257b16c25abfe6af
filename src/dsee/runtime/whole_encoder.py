"""Encoders whose layers are one call of the kernels: from the first to the last nothing goes back to torch."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers.utils import ModelOutput

from dsee.architectures._map import Architecture
from dsee.architectures._view import LayerView
from dsee.kernels.encoder import Encoder, EncoderLayer, Norm
from dsee.kernels.hooks import watched
from dsee.kernels.library import library
from dsee.kernels.linear import OnKernels, kernels_can
from dsee.kernels.matrix import SparseMatrix
from dsee.kernels.self_attention import Projection
from dsee.runtime import own_attention
from dsee.runtime.activations import mapped_layers
from dsee.runtime.dressed import Dressed, dress, undress
from dsee.runtime.one_call_attention import probe

#: Where such a module keeps what follows.
STATE = "_dsee_encoder"
#: The linears of a layer, as its map calls them and in the kernels' order.
LINEARS = ("query", "key", "value", "output", "ffn_in", "ffn_out")
#: What the forward of such a module takes at least.
NEEDED = {"self", "hidden_states", "attention_mask"}


class Parts(NamedTuple):
    """Modules of a layer.

    Attributes:
        linears: those of ``LINEARS``.
        norms: layer norms, in their order.
        attention: the module that holds the head size.
        inside: all of them.
        places: each of them but the layer itself: the children among whom it is, its name there, and the module.
    """

    linears: list[Any]
    norms: list[nn.LayerNorm]
    attention: Any
    inside: list[nn.Module]
    places: list[tuple[dict[str, nn.Module | None], str, nn.Module]]


class Layers:
    """An encoder's layers, and what the kernels were last given for them.

    Attributes:
        architecture: their map.
        name: of the list in the encoder.
        config: the model's.
        output: makes what the encoder returns of its ``last_hidden_state``.
    """

    def __init__(self, architecture: Architecture, name: str, config: Any, output: Any = None) -> None:
        """Remember where the layers are.

        Args:
            architecture: their map.
            name: of the list in the encoder.
            config: the model's.
            output: the class of what the encoder returns.
        """
        self.architecture, self.name, self.config, self.output = architecture, name, config, output
        self._found: list[Parts] = []
        self._key: tuple[Any, ...] = ()
        self._held: tuple[Any, ...] = ()
        self._encoder: Encoder | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # a copy of the model has layers of its own, and the encoder holds addresses
        return Layers, (self.architecture, self.name, self.config, self.output)

    def encoder(self, module: nn.Module, x: torch.Tensor, mask: torch.Tensor | None) -> Encoder | None:
        """Return what computes the layers now, or None where the kernels cannot.

        Args:
            module: the encoder.
            x: its input.
            mask: of attention.
        """
        if not self._still(module):
            self._found = [self._parts(layer) for layer in cast("Any", module)._modules[self.name]]
        made: list[Projection] = []
        tensors: list[torch.Tensor] = []
        for parts in self._found:
            if any(map(watched, parts.inside)):
                return None
            for linear in parts.linears:
                if not isinstance(linear, OnKernels):
                    return None
                own = linear._parameters
                if not kernels_can(x, cast("torch.Tensor", own["weight"]), *own.values(), mask):
                    return None
                # not before the kernels can: after a change it packs the weight again
                matrix = linear.packed()
                if not isinstance(matrix, SparseMatrix):
                    return None
                made.append(Projection(matrix, own["bias"], linear._dsee_sparse.side))
            for norm in parts.norms:
                if norm.weight is None or not kernels_can(x, norm.weight, norm.bias):
                    return None
                tensors += [norm.weight, norm.bias]
        numbers = (norm.eps for parts in self._found for norm in parts.norms)
        biases = (None if each.bias is None else each.bias.data_ptr() for each in made)
        # a branch is packed with its matrix
        key = (*(id(each.matrix) for each in made), *biases, *(t.data_ptr() for t in tensors), *numbers)
        if key != self._key:
            # what the key's numbers stand for is kept, or something new could lie where it lay
            self._encoder, self._key, self._held = self._made(made), key, (made, tensors)
        return self._encoder

    def _still(self, module: nn.Module) -> bool:
        """Whether the layers are those that were looked at: somebody may have put an adapter around one of them."""
        layers: Any = module._modules[self.name]
        return len(layers) == len(self._found) and all(
            parts.inside[0] is layer and all(among.get(name) is child for among, name, child in parts.places)
            for parts, layer in zip(self._found, layers, strict=True)
        )

    def _parts(self, layer: nn.Module) -> Parts:
        view, inside = LayerView(0, layer, self.architecture), list(layer.modules())
        norms = [each for each in inside if isinstance(each, nn.LayerNorm)]
        places = [(m._modules, name, child) for m in inside for name, child in m._modules.items() if child is not None]
        return Parts([view.part(name) for name in LINEARS], norms, view.part("attention"), inside, places)

    def _made(self, projections: list[Projection]) -> Encoder | None:
        layers = []
        for i, parts in enumerate(self._found):
            made = self._layer(parts, projections[6 * i : 6 * i + 6])
            if made is None or not made.fits:
                return None
            layers.append(made)
        alike = len({(one.query.matrix.kind, one.query.matrix.shape[1]) for one in layers}) == 1
        return Encoder(layers) if alike else None

    def _layer(self, parts: Parts, six: list[Projection]) -> EncoderLayer | None:
        states = [linear._dsee_sparse for linear in parts.linears]
        if len(parts.norms) != 2 or any(norm.bias is None for norm in parts.norms):
            return None
        if any(state.activation for state in (*states[:4], states[5])):
            return None
        norms = [Norm(norm.weight, norm.bias, norm.eps) for norm in parts.norms]
        tensors = [*(each.bias for each in six), *(t for norm in norms for t in (norm.gain, norm.shift))]
        if not all(t is None or t.is_contiguous() for t in tensors):
            return None
        query, key, value, output, first, second = six
        dim = getattr(parts.attention, self.architecture.head_size)
        return EncoderLayer(
            *(query, key, value, output, first, second),
            norms=(norms[0], norms[1]),
            heads=query.matrix.shape[0] // dim,
            scale=getattr(parts.attention, "scaling", None) or dim**-0.5,
            activation=states[4].activation,
        )


class WholeEncoder(Dressed):
    """The forward pass that such modules take."""

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Return what the original returns: by one call where the kernels have all of it and nothing more is asked.

        Args:
            hidden_states: (batch, tokens, width).
            attention_mask: as transformers' sdpa takes it.
            *args: for the original.
            **kwargs: for the original; with any that says something, the original computes.
        """
        plain = not any(given is not None and given is not False for given in (*args, *kwargs.values()))
        out = _by_one_call(self, hidden_states, attention_mask) if plain else None
        if out is not None:
            return self.__dict__[STATE].output(last_hidden_state=out)
        original: Any = super().forward
        return original(hidden_states, attention_mask, *args, **kwargs)


def _by_one_call(module: nn.Module, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor | None:
    """What an encoder makes of its input, by one call; None where the kernels cannot, or gain nothing by it."""
    state: Layers = module.__dict__[STATE]
    if (
        module.training
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]  # public, but not named in __all__
        or x.dim() != 3
        or not x.numel()
        or not own_attention.takes_mask(mask)
        or state.config._attn_implementation != own_attention.NAME
    ):
        return None
    encoder = state.encoder(module, x, mask)
    if encoder is None or not encoder.pays(x.shape[0], x.shape[1], torch.get_num_threads()):
        return None
    return encoder(x, mask)


def fuse_encoders(model: nn.Module) -> list[nn.Module]:
    """Let encoders compute all their layers in one call, if that gives the same result.

    They do so while the model's config names the kernels' attention.

    Args:
        model: a model with layers on the kernels.

    Returns:
        The modules, for :func:`unfuse_encoders`.
    """
    views = {id(view.module): view for view in mapped_layers(model)}
    base, found = own_attention.base_of(model), []
    if base is None or library() is None:
        return []
    for module in model.modules():
        name = _list_in(module, set(views))
        if not name or isinstance(module, WholeEncoder):
            continue
        if not set(inspect.signature(type(module).forward).parameters) >= NEEDED:
            continue
        first: Any = module._modules[name]
        state = Layers(views[id(first[0])].architecture, name, base.config)
        state.output = _output(module, state)
        if state.output is not None:
            module.__dict__[STATE] = state
            dress(module, WholeEncoder)
            found.append(module)
    return found


def _list_in(module: nn.Module, layers: set[int]) -> str:
    """The name of a module's list of layers; "" where it has none."""
    for name, child in module._modules.items():
        if isinstance(child, nn.ModuleList) and len(child) and all(id(layer) in layers for layer in child):
            return name
    return ""


def _output(module: nn.Module, state: Layers) -> Any:
    """What an encoder returns, if one call computes what is in it, by its values on random numbers; else None."""
    first: Any = module._modules[state.name]
    query = LayerView(0, first[0], state.architecture).part("query")
    if not isinstance(query, OnKernels):
        return None
    x, mask = probe(query.packed().shape[1])
    with torch.inference_mode():
        encoder = state.encoder(module, x, mask)
        if encoder is None:
            return None
        try:
            expected = module(x, mask)
        except (TypeError, ValueError, RuntimeError):
            return None
        mine = encoder(x, mask)
    known = isinstance(expected, ModelOutput) and list(expected) == ["last_hidden_state"]
    same = known and torch.allclose(mine, expected["last_hidden_state"], rtol=1e-3, atol=1e-4)
    return type(expected) if same else None


def unfuse_encoders(modules: list[nn.Module]) -> None:
    """Undo :func:`fuse_encoders`.

    Args:
        modules: what it returned.
    """
    undress(modules)
    for module in modules:
        module.__dict__.pop(STATE, None)
