"""What a map holds."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Architecture:
    """Where one family keeps its parts. All paths are relative to one layer unless stated otherwise.

    Paths are dotted; a number counts in a list, "-1" from its end. Where a family has two layouts a path may name both,
    "wi|wi_0": the first that is there counts. Parts with the same path share one module: its output rows are theirs in
    equal shares, in the order query, key, value or in, gate.

    A head is what can be removed alone. Where several query heads read one key and value head, that is a key-value head
    together with its query heads; how many those are is read off the shapes.

    Attributes:
        name: the family, as in the configuration's ``model_type``.
        layers: path of the layer list inside the base model (the model without its task head); of each list, in their
            order, where there are several. A model may lack some of several, not all.
        query: path of the query projection.
        key: path of the key projection.
        value: path of the value projection.
        output: path of the projection that joins the heads.
        ffn_in: path of the linear that makes the neurons.
        ffn_out: path of the linear that reads them.
        attention: path of the module that holds the head size.
        head_size: name of its attribute.
        gate: path of a second linear whose neurons multiply those of ``ffn_in`` (or the reverse).
        activation: path of the module or function between ``ffn_in`` and ``ffn_out``; with a gate, the one applied to
            one of the two, named by ``activated``. Needed only where the linears have biases.
        activated: the part that goes through the activation.
        positions: paths of further projections with the rows of the query, such as those of relative positions. They
            may be missing from a model.
        position_span: attribute of ``attention``: how many relative positions on each side queries and keys are
            multiplied with, as in DeBERTa.
        cross: path of a second attention over the encoder's states, with the same inner names; its heads stay.
        heads_attributes: attributes of ``attention`` that count heads and are rewritten after a cut.
        width_attributes: attributes of ``attention`` that hold heads x head size.
        neurons_attributes: paths of attributes that count neurons.
        fixed_heads: why heads cannot be cut, if so.
        uniform: fields of the configuration that describe a model with the same cut in every layer, each with the
            property of a layer it holds; a model that a stock class can rebuild from them is saved as a stock model.
        model_types: other ``model_type`` values with the same layout.
    """

    name: str
    layers: str | tuple[str, ...]
    query: str
    key: str
    value: str
    output: str
    ffn_in: str
    ffn_out: str
    attention: str
    head_size: str
    gate: str = ""
    activation: str = ""
    activated: str = "ffn_in"
    positions: tuple[str, ...] = ()
    position_span: str = ""
    cross: str = ""
    heads_attributes: tuple[str, ...] = ()
    width_attributes: tuple[str, ...] = ()
    neurons_attributes: tuple[str, ...] = ()
    fixed_heads: str = ""
    uniform: tuple[tuple[str, str], ...] = ()
    model_types: tuple[str, ...] = field(default=())

    @property
    def default_targets(self) -> list[str]:
        """The projections the paper adapts: query and value, once where they share a module."""
        return list(dict.fromkeys(path.rpartition(".")[2] for path in (self.query, self.value)))
