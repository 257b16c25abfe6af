"""What a part adds whatever the input is: it moves into the output's bias when the part goes.

Removing a part takes its contribution away, as a mask on it does. Two contributions are constant, and keeping them
costs nothing:

- A neuron whose input row is zero (masked) has the value c = act(b), with a gate act(b1) b2. It adds W_out[:, j] c.
- A head whose value rows are zero hands on its value bias, as the weights of attention sum to one. It adds W_o b_v,
  summed over the query heads that share the value.

They are folded only where that is exact: no update of any adapter touches these rows or columns (a bias cannot follow
an adapter that is switched off), and there is an output bias to fold into. A family without biases has nothing to fold:
act(0) is 0 for the activations that go without.
"""

from __future__ import annotations

from typing import Any

import torch

from dsee.architectures import LayerView
from dsee.masks import bare, oriented
from dsee.update.layer import DseeLayer


def fold_heads(view: LayerView, removed: tuple[int, ...]) -> None:
    """Add to the output's bias what the removed heads contribute whatever the input.

    Args:
        view: the layer, not yet cut.
        removed: the heads that go.
    """
    value, output = view.part("value"), bare(view.part("output"))
    if not removed or bare(value).bias is None or output.bias is None:
        return
    size, start = view.head_size, view.rows("value").start
    idle_rows, idle_columns = _idle(value, 0), _idle(view.part("output"), 1)
    for head in removed:
        rows = slice(start + head * size, start + (head + 1) * size)
        width = view.width("output")
        columns = slice(head * width, (head + 1) * width)
        silent = not oriented(value)[rows].any() and idle_rows[rows].all()
        if silent and idle_columns[columns].all():
            given = bare(value).bias.data[rows].double().repeat(view.queries_per_head)
            _add(output, oriented(output)[:, columns].double() @ given)


def fold_neurons(view: LayerView, removed: tuple[int, ...]) -> None:
    """Add to the second linear's bias what the removed neurons contribute whatever the input.

    Args:
        view: the layer, not yet cut.
        removed: the neurons that go.
    """
    out = bare(view.part("ffn_out"))
    names, own = view.names("neurons"), view.architecture
    biases = {name: bare(view.part(name)).bias for name in names}
    if not removed or not own.activation or out.bias is None or any(bias is None for bias in biases.values()):
        return
    neurons = torch.tensor(removed, device=out.weight.device)
    constant = _idle(view.part("ffn_out"), 1)[neurons]
    values = torch.ones(len(removed), dtype=out.weight.dtype, device=out.weight.device)
    for name in names:
        linear, rows = view.part(name), neurons + view.rows(name).start
        constant = constant & ~oriented(linear)[rows].any(1) & _idle(linear, 0)[rows]
        bias = biases[name].data[rows]
        values = values * (view.part("activation")(bias) if name == own.activated else bias)
    _add(out, oriented(out)[:, neurons].double() @ (values * constant).double())


def _idle(linear: Any, dim: int) -> torch.Tensor:
    """Rows (dim 0) or columns (dim 1) of a linear, (out, in), that no adapter's update touches, bool."""
    weight = oriented(linear)
    idle = torch.ones(weight.shape[dim], dtype=torch.bool, device=weight.device)
    if isinstance(linear, DseeLayer):
        for adapter in linear.dsee_scaling:
            if linear.has_update(adapter):
                delta = linear.get_delta_weight(adapter)
                idle &= ~(delta.T if linear.transposed else delta).ne(0).any(1 - dim)
    return idle


def _add(linear: Any, values: torch.Tensor) -> None:
    linear.bias.data.copy_(linear.bias.data.double() + values)
