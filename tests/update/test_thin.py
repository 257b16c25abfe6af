"""U's own product: the values and gradients of a plain linear, by other matrix products."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dsee.update.thin import TRANSPOSE_BELOW, ThinLinear, thin_product

sizes = st.integers(1, 2 * TRANSPOSE_BELOW)


@settings(deadline=None, max_examples=60)
@given(tokens=st.integers(0, 40), rank=sizes, out=st.integers(1, 50), seed=st.integers(0, 9))
def test_it_equals_a_plain_linear(tokens, rank, out, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, grad = (torch.randn(*s, generator=generator) for s in ((tokens, rank), (out, rank), (tokens, out)))
    found, expected = [], []
    for product, into in ((thin_product, found), (nn.functional.linear, expected)):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        y = product(h, w)
        y.backward(grad)
        into += [y.detach(), h.grad, w.grad]
    for mine, theirs in zip(found, expected, strict=True):
        # sums of at most 50 products of order one
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=500 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("rank", [1, TRANSPOSE_BELOW - 1, TRANSPOSE_BELOW])
def test_its_gradients_are_those_of_finite_differences(rank):
    torch.manual_seed(0)
    h = torch.randn(2, 3, rank, dtype=torch.float64, requires_grad=True)
    w = torch.randn(5, rank, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(thin_product, (h, w))


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_a_gradient_nobody_asked_for_is_not_made(frozen):
    h, w = torch.randn(4, 3), torch.randn(5, 3)
    asked = w if frozen == "input" else h
    asked.requires_grad_()
    thin_product(h, w).sum().backward()
    assert asked.grad is not None
    assert (h if frozen == "input" else w).grad is None


def test_under_autocast_it_is_in_the_lower_precision_and_trains():
    layer = ThinLinear(4, 6, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.randn(3, 4))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_it_saves_its_input_and_its_weight_and_nothing_else():
    layer, h = ThinLinear(4, 6, bias=False), torch.randn(3, 4)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        layer(h)
    assert sorted(saved) == sorted([h.data_ptr(), layer.weight.data_ptr()])
