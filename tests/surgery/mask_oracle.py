"""The slow truth a cut is held against: the same heads and neurons, zeroed instead of removed."""

from __future__ import annotations

from copy import deepcopy

import torch

from conftest import LABELS, adapted, logits
from dsee.architectures import layers
from dsee.pruning import LayerPlan

#: What the design promises: logits of a cut model against those of a masked one.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

#: Another share in each layer; one neuron and one head are the least that may stay.
UNEVEN = [
    LayerPlan((0, 2), (0, 5, 7, 39)),
    LayerPlan((), tuple(range(1, 40))),
    LayerPlan((0, 1, 3), ()),
]

#: Every linear of the layers, in all mapped families.
ALL_LINEARS = r".*layer\.\d+\..*(query|key|value|dense|q_lin|k_lin|v_lin|out_lin|lin1|lin2)"


def zeroed(model, plan):
    """A copy in which what the plan names contributes nothing: the inputs that carry it are set to zero."""
    copy = deepcopy(model)
    for view, layer_plan in zip(layers(copy), plan, strict=True):
        # of all the query heads that share one key-value head
        size = weight(view.part("output")).shape[1] // view.heads
        _silence(view.part("output"), [head * size + i for head in layer_plan.heads for i in range(size)])
        _silence(view.part("ffn_out"), list(layer_plan.neurons))
    return copy


def weight(linear):
    """W, (out, in)."""
    base = linear.base_layer if hasattr(linear, "base_layer") else linear
    return base.weight.T if type(base).__name__ == "Conv1D" else base.weight


def _silence(linear, features):
    def hook(_, args):
        x = args[0].clone()
        x[..., features] = 0.0
        return (x, *args[1:])

    linear.register_forward_pre_hook(hook)


def strong(base, **config):
    """An update on the base whose every part moves the logits well beyond rounding."""
    model = adapted(base, support="random", **config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "dsee_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def assert_equal_logits(one, other, dtype=torch.float32, inputs=None):
    expected = logits(other, inputs)
    assert expected.dtype == dtype
    assert expected.shape == (4, LABELS)
    torch.testing.assert_close(logits(one, inputs), expected, rtol=0.0, atol=TOLERANCE[dtype])


def assert_plan_matters(model, masked):
    """Guards the comparison itself: a mask that changed no logit would agree with any cut."""
    assert (logits(model) - logits(masked)).abs().max() > 1e-2
