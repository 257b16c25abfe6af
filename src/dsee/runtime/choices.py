"""What ``dsee.optimize`` chose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

DENSE = "dense"


@dataclass(frozen=True)
class Choice:
    """One layer.

    Attributes:
        name: its path in the model.
        chosen: "dense", "blocks", "weights", "int8" or "2:4".
        times_ms: way -> shortest time of one call in milliseconds; only the ways that were tried.
        density: way -> stored numbers over all.
        activation: the activation function computed with it, or None.
        reason: why it was left dense without being timed, where that is the device, the dtype, its size or its zeros.
    """

    name: str
    chosen: str
    times_ms: dict[str, float]
    density: dict[str, float]
    activation: str | None = None
    reason: str | None = None

    @property
    def gain(self) -> float:
        """Dense time over the chosen one's."""
        return self.times_ms[DENSE] / self.times_ms[self.chosen]


@dataclass
class Choices:
    """What :func:`optimize` chose; printing it shows a line for each layer.

    Attributes:
        layers: one entry a linear layer that was looked at.
        tokens: tokens of the sample batch.
        path: instruction set of the kernels or name of the GPU, or why there is no sparse product.
        gain: time of the whole model before over after, on the sample.
        deviation: norm of the change of the outputs over their norm, on the sample; 0 without 8-bit layers, where only
            rounding differs.
        attention: "sdpa" (torch's), "dsee" (the kernels') or "" where the model leaves no choice.
        attentions: attention modules whose query, key and value are computed in the same call as attention itself.
        encoders: stacks of layers that run in one call, from the embeddings to the last layer.
        norms: layer norms that take the sum before them along.
        pairs: feed-forward blocks whose two linears run in one call.
    """

    layers: list[Choice]
    tokens: int
    path: str
    gain: float = 1.0
    attention: str = ""
    deviation: float = 0.0
    attentions: int = 0
    norms: int = 0
    pairs: int = 0
    encoders: int = 0
    _undo: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Put the model back as it was."""
        while self._undo:
            self._undo.pop()()

    @property
    def summary(self) -> str:
        """One line: how many layers run on the kernels."""
        sparse = [layer for layer in self.layers if layer.chosen != DENSE]
        rounded = [layer for layer in sparse if layer.chosen == "int8"]
        return (
            f"{len(sparse)} of {len(self.layers)} linear layers on sparse kernels ({self.path}), {self.tokens} tokens"
            + (f", {len(rounded)} of them as int8: outputs differ by {self.deviation:.1%}" if rounded else "")
        )

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=0)
        lines = [
            f"  {layer.name:{width}}  {layer.chosen:7}"
            + (f"  {layer.density[layer.chosen]:4.0%} stored" if layer.chosen in layer.density else "")
            + "".join(f"  {way} {ms:.3f} ms" for way, ms in layer.times_ms.items())
            + (f"  with {layer.activation}" if layer.activation else "")
            + (f"  ({layer.reason})" if layer.reason else "")
            for layer in self.layers
        ]
        others = [f"  attention: {self.attention}"] if self.attention else []
        others += [f"  whole encoders in one call: {self.encoders}"] if self.encoders else []
        others += [f"  query, key, value and attention in one call: {self.attentions}"] if self.attentions else []
        others += [f"  sum and layer norm in one: {self.norms}"] if self.norms else []
        others += [f"  feed-forward blocks in one call: {self.pairs}"] if self.pairs else []
        return "\n".join([self.summary, *lines, *others, f"whole model: {self.gain:.2f} times as fast"])
