"""A whole encoder in one call of the kernels: between its layers the hidden states stay as the kernels have them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dsee.errors import InputError
from dsee.kernels.attend import check_mask, spread
from dsee.kernels.library import ACTIVATIONS, library
from dsee.kernels.norm import add_norm
from dsee.kernels.product import compute
from dsee.kernels.self_attention import Projection, fit_together, pointers, self_attention

#: Tokens over the room for them from which on panels count as full: below, products apart were 8 to 10 % faster.
FULLEST = 8 / 9


class CLayer(ctypes.Structure):
    """``dsee_layer`` of dsee_kernels.h."""

    _fields_ = (
        *((name, c_void_p * 6) for name in ("w", "bias", "v", "u")),
        ("gain", c_void_p * 2),
        ("shift", c_void_p * 2),
        ("heads", c_int64),
        ("eps", c_float * 2),
        ("scale", c_float),
        ("activation", c_int32),
    )


class CEncoder(ctypes.Structure):
    """``dsee_encoder`` of dsee_kernels.h."""

    _fields_ = (
        ("layer", POINTER(CLayer)),
        *((name, c_void_p) for name in ("x", "y", "hidden", "context", "allowed", "mask")),
        *((name, c_int64) for name in ("mask_batch", "mask_head", "mask_query")),
        *((name, c_int64) for name in ("layers", "batch", "tokens", "width", "room")),
        ("kind", c_int32),
    )


class Norm(NamedTuple):
    """A layer norm.

    Attributes:
        gain: float32 (width,).
        shift: float32 (width,).
        eps: added to the variance.
    """

    gain: torch.Tensor
    shift: torch.Tensor
    eps: float


@dataclass(frozen=True)
class EncoderLayer:
    """One layer: h = norm1(attention(h) Wo' + bo + h), then norm2(act(h W1' + b1) W2' + b2 + h).

    Attributes:
        query: makes the queries.
        key: makes the keys.
        value: makes the values.
        output: Wo and bo.
        first: W1 and b1.
        second: W2 and b2; each may have a side branch.
        norms: norm1 and norm2.
        heads: how many.
        scale: of the scores.
        activation: a key of ``ACTIVATIONS``.
    """

    query: Projection
    key: Projection
    value: Projection
    output: Projection
    first: Projection
    second: Projection
    norms: tuple[Norm, Norm]
    heads: int
    scale: float
    activation: str | None

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All six, in the order of the kernels."""
        return self.query, self.key, self.value, self.output, self.first, self.second

    @property
    def fits(self) -> bool:
        """Whether one call can compute all of it."""
        width, rows = self.query.matrix.shape[1], self.query.matrix.shape[0]
        shapes = [each.matrix.shape for each in self.projections[3:]]
        inner = self.first.matrix.shape[0]
        return (
            self.heads > 0
            and rows % self.heads == 0
            and len({each.matrix.kind for each in self.projections}) == 1
            and fit_together(self.query, self.key, self.value, rows // self.heads)
            and all(each.fits for each in self.projections[3:])
            and shapes == [(width, rows), (inner, width), (width, inner)]
            and all(t.shape == (width,) for norm in self.norms for t in (norm.gain, norm.shift))
        )

    def c(self) -> CLayer:
        """What the library is given; this object has to live as long."""
        return CLayer(
            *pointers(self.projections),
            (c_void_p * 2)(*(norm.gain.data_ptr() for norm in self.norms)),
            (c_void_p * 2)(*(norm.shift.data_ptr() for norm in self.norms)),
            self.heads,
            (c_float * 2)(*(norm.eps for norm in self.norms)),
            self.scale,
            ACTIVATIONS[self.activation],
        )


class Encoder:
    """Layers that follow each other, ready for the kernels.

    Attributes:
        layers: in their order; of one kind and width.
        width: features of the hidden states.
    """

    def __init__(self, layers: Sequence[EncoderLayer]) -> None:
        """Take layers together.

        Args:
            layers: at least one; their tensors are float32, contiguous and on the CPU.

        Raises:
            InputError: they do not fit together.
        """
        kinds = {layer.query.matrix.kind for layer in layers}
        widths = {layer.query.matrix.shape[1] for layer in layers}
        if len(kinds) != 1 or len(widths) != 1 or not all(layer.fits for layer in layers):
            raise InputError(
                "Encoder: the layers do not fit together: all matrices have to be of one kind, all layers of one "
                "width, side branches packed for them, and heads of a multiple of 4."
            )
        self.layers, self.width, self._kind = tuple(layers), widths.pop(), kinds.pop()
        self._joined = max(layer.output.matrix.shape[1] for layer in layers)
        self._c = (CLayer * len(layers))(*(layer.c() for layer in layers)) if library() is not None else None

    def pays(self, batch: int, tokens: int, threads: int) -> bool:
        """Whether one call is worth it.

        Panels are of one sequence each, so with several sequences they should be full; apart, the products fill theirs
        across sequences. And panels are what threads share.

        Args:
            batch: sequences.
            tokens: of each.
            threads: how many threads may share it.
        """
        found = library()
        if found is None:
            return False
        if threads > 1 and batch * -(-tokens // found.panels[self._kind]) < threads:
            return False
        return batch == 1 or FULLEST * found.encoder_room(self._kind, 1, tokens, 1) <= tokens

    def __call__(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return what the layers make of hidden states; no gradients. Without the compiled kernels torch computes it.

        Args:
            x: float32 (batch, tokens, width) on the CPU.
            mask: broadcastable to (batch, heads, tokens, tokens), and with one head where layers differ in theirs:
                bool, True where a key may be seen, or float32, added to the scores; None for neither.

        Returns:
            float32 (batch, tokens, width).

        Raises:
            InputError: shapes or dtypes that do not fit.
        """
        if x.dim() != 3 or x.shape[-1] != self.width or x.dtype != torch.float32 or x.device.type != "cpu":
            raise InputError(f"Encoder: x has to be float32 (batch, tokens, {self.width}) on the CPU.")
        batch, tokens = x.shape[:2]
        for heads in {layer.heads for layer in self.layers}:
            check_mask("Encoder", mask, (batch, heads, tokens, tokens))
        found = library()
        if found is None or self._c is None or not x.numel():
            return self._apart(x, mask)
        x = x.contiguous()
        places: list[int | None] = [None, None]
        steps = [0, 0, 0]
        mask = None if mask is None else spread(mask, batch, mask.shape[1], tokens, tokens)
        if mask is not None:
            # one for all heads, or one for each
            steps = [mask.stride(0), mask.stride(1) if mask.shape[1] > 1 else 0, mask.stride(2)]
            places[mask.dtype != torch.bool] = mask.data_ptr()
        room = found.encoder_room(self._kind, batch, tokens, self.width)
        y, hidden, context = torch.empty_like(x), torch.empty(room), torch.empty(batch * tokens * self._joined)
        given = CEncoder(
            ctypes.cast(self._c, POINTER(CLayer)),
            *(t.data_ptr() for t in (x, y, hidden, context)),
            *places,
            *steps,
            *(len(self.layers), batch, tokens, self.width),
        )
        found.encode(given, torch.get_num_threads())
        return y

    def _apart(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        for layer in self.layers:
            three = (layer.query, layer.key, layer.value)
            dim = layer.query.matrix.shape[0] // layer.heads
            seen = self_attention(x, *three, dim, mask, scale=layer.scale).flatten(2)
            x = add_norm(compute(seen, *layer.output, None), x, *layer.norms[0])
            middle = compute(x, *layer.first, layer.activation)
            x = add_norm(compute(middle, *layer.second, None), x, *layer.norms[1])
        return x
