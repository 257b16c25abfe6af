"""The Fisher score against gates written out by hand: half the mean of the squared derivative by each gate."""

import pytest
import torch
from score_oracle import UNITS, assert_scores, score

import dsee
from conftest import batch, tiny_bert
from dsee.architectures import layers


def by_gates(model, unit, batches):
    """One example at a time, a gate of 1 on each head or neuron, and autograd."""
    totals, examples = None, 0
    for inputs in batches:
        for row in range(len(inputs["labels"])):
            one = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
            gates, hooks = [], []
            for view in layers(model):
                part, size = ("output", view.heads) if unit == "heads" else ("ffn_out", view.neurons)
                gate = torch.ones(size, requires_grad=True)
                gates.append(gate)
                hooks.append(
                    view.part(part).register_forward_pre_hook(
                        lambda _, args, gate=gate: (args[0] * gate.repeat_interleave(args[0].shape[-1] // len(gate)),)
                    )
                )
            found = torch.autograd.grad(model(**one).loss, gates)
            for hook in hooks:
                hook.remove()
            squares = [gradient.double().square() for gradient in found]
            totals = squares if totals is None else [a + b for a, b in zip(totals, squares, strict=True)]
            examples += 1
    return [0.5 * total / examples for total in totals]


@pytest.mark.parametrize("unit", UNITS)
def test_it_is_half_the_mean_squared_derivative_by_a_gate(unit):
    model = tiny_bert()
    batches = [batch(labels=True), batch(2, labels=True, seed=1)]
    assert_scores(score(model, "fisher", unit, batches), by_gates(model, unit, batches))


@pytest.mark.parametrize("unit", UNITS)
def test_it_needs_data(unit):
    with pytest.raises(dsee.InputError, match="score='fisher' looks at data"):
        score(tiny_bert(), "fisher", unit)
