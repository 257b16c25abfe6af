"""score="taylor": what the loss would do if a gate on a head or neuron were closed, by its first derivative."""

import pytest
import torch
from score_oracle import UNITS, assert_scores, score

from conftest import adapted, batch, tiny_bert
from dsee.architectures import layers

PART = {"heads": "output", "neurons": "ffn_out"}


def single_examples(batches):
    for each in batches:
        for i in range(each["input_ids"].shape[0]):
            yield {name: values[i : i + 1] for name, values in each.items()}


class Gated:
    """Multiplies the input of each output projection (or second FFN linear) by gates, one per head (or neuron)."""

    def __init__(self, model, unit):
        views = layers(model)
        counts = [view.heads if unit == "heads" else view.neurons for view in views]
        widths = [view.head_size if unit == "heads" else 1 for view in views]
        self.model = model
        self.gates = [torch.ones(count, dtype=torch.float64, requires_grad=True) for count in counts]
        self.hooks = [
            view.part(PART[unit]).register_forward_pre_hook(self._hook(gate, width))
            for view, gate, width in zip(views, self.gates, widths, strict=True)
        ]

    def _hook(self, gate, width):
        return lambda _, args: (args[0] * gate.repeat_interleave(width).to(args[0].dtype),)

    def loss(self, example):
        return self.model(**example).loss

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


def gate_gradients(model, unit, batches):
    """Mean over examples of |dLoss/dgate|, one example at a time."""
    with Gated(model, unit) as gated:
        found = [torch.autograd.grad(gated.loss(each), gated.gates) for each in single_examples(batches)]
    return [torch.stack(of_layer).abs().mean(0) for of_layer in zip(*found, strict=True)]


BATCHES = [batch(4, 10, labels=True, seed=1), batch(3, 7, labels=True, seed=2), batch(1, 5, labels=True, seed=3)]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("updated", [False, True], ids=["bare", "updated"])
def test_it_is_the_gradient_of_explicit_gates(family, unit, updated):
    model = (adapted(family()) if updated else family()).double()
    expected = gate_gradients(model, unit, BATCHES)
    assert min(values.min() for values in expected) > 0
    assert_scores(score(model, "taylor", unit, BATCHES), expected)


@pytest.mark.parametrize("unit", UNITS)
def test_it_is_what_finite_differences_say(family, unit):
    model = family().double()
    example = batch(1, 6, labels=True)
    measured = score(model, "taylor", unit, [example])
    step = 1e-5
    with Gated(model, unit) as gated, torch.no_grad():
        for layer, gate in enumerate(gated.gates):
            for i in (0, 3):
                losses = []
                for side in (1 + step, 1 - step):
                    gate[i] = side
                    losses.append(float(gated.loss(example)))
                gate[i] = 1.0
                slope = abs(losses[0] - losses[1]) / (2 * step)
                # the error of a central difference is step**2; the score is summed in fp32
                assert float(measured[layer][i]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("unit", UNITS)
def test_the_size_of_the_batches_does_not_matter(family, unit):
    model = family()
    together = score(model, "taylor", unit, BATCHES)
    singly = score(model, "taylor", unit, single_examples(BATCHES))
    for one, other in zip(together, singly, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_examples_do_not_cancel_each_other():
    """The mean of absolute values, not the absolute value of a mean."""
    model = tiny_bert()
    apart = [score(model, "taylor", "heads", [each]) for each in single_examples(BATCHES[:1])]
    together = score(model, "taylor", "heads", BATCHES[:1])
    for layer, values in enumerate(together):
        expected = torch.stack([each[layer] for each in apart]).mean(0)
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)
