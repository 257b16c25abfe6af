"""8-bit products equal the product of what was rounded, and stay near the product of what was not."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from kernel_oracle import needs_kernels, sparse_weight
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from dsee.errors import InputError
from dsee.kernels import from_kernels, library, pack_int8, to_kernels
from dsee.kernels.int8 import Int8Matrix, int8_compute, quantised
from dsee.kernels.product import activate

EPS = torch.finfo(torch.float32).eps


def matrix_of(rows, columns, zeros, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = sparse_weight(rows, columns, zeros, "blocks", generator)
    return weight, pack_int8(weight), generator


def half_way(x):
    """1.0 where fp32's roundings may decide between two of a token's 127 steps, (tokens, columns), and the steps."""
    if not x.shape[0]:
        return x.double(), 0.0
    exact = x.double()
    low, high = exact.amin(-1, keepdim=True), exact.amax(-1, keepdim=True)
    step = (high - low) / 127
    place = (exact - low) / step.clamp_min(torch.finfo(torch.float64).tiny)
    # the kernel takes a difference, a reciprocal and a product: three roundings, of numbers up to 127
    return ((place - place.floor() - 0.5).abs() < 4 * 127 * EPS).double(), step


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 200),
    tokens=st.integers(0, 50),
    zeros=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    bias=st.booleans(),
    activation=st.sampled_from([None, "relu", "gelu", "silu"]),
    seed=st.integers(0, 2**16),
)
# one feature of one token lies half-way
@example(rows=9, columns=37, tokens=14, zeros=0.0, bias=False, activation=None, seed=37)
def test_it_equals_the_product_of_the_rounded(rows, columns, tokens, zeros, bias, activation, seed):
    _, matrix, generator = matrix_of(rows, columns, zeros, seed)
    x = 3 * torch.randn(tokens, columns, generator=generator) + 1
    b = torch.randn(rows, generator=generator) if bias else None
    found = int8_compute(x, matrix, b, activation)
    wide = quantised(x).double()
    expected = functional.linear(wide, matrix.dense().double(), None if b is None else b.double())
    size = functional.linear(wide.abs(), matrix.dense().double().abs()) + (0 if b is None else b.double().abs())
    dense = matrix.dense().double().abs()
    # a feature half-way between two steps may be rounded either way, which moves its token by one step of its weights
    ties, step = half_way(x)
    bound = 1.13 * ((columns + 8) * EPS * size + step * functional.linear(ties, dense)) + 1e-6
    assert found.shape == (tokens, rows)
    assert bool(((found - activate(expected, activation)).abs() <= bound).all())


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40), columns=st.integers(1, 60), zeros=st.sampled_from([0.0, 0.6, 1.0]), seed=st.integers(0, 99)
)
def test_packing_keeps_zeros_and_rounds_to_half_a_step(rows, columns, zeros, seed):
    weight, matrix, _ = matrix_of(rows, columns, zeros, seed)
    back = matrix.dense()
    assert back.shape == weight.shape
    assert bool((back[weight == 0] == 0).all())
    assert bool(((back - weight).abs() <= 0.5 * matrix.scale[:, None] * (1 + 1e-5)).all())
    torch.testing.assert_close(matrix.sum, (back / matrix.scale[:, None]).round().sum(1))


def test_error_is_that_of_eight_bits():
    _, _, generator = matrix_of(1, 1, 0.0, 0)
    weight, x = torch.randn(96, 128, generator=generator), torch.randn(40, 128, generator=generator)
    exact, found = functional.linear(x, weight), int8_compute(x, pack_int8(weight), None, None)
    # each of both factors is off by a uniform step's standard deviation, 1 / sqrt(12) of it
    steps = (x.amax(1) - x.amin(1)) / 127
    expected = ((steps**2).mean() / 12 / x.pow(2).mean() + ((weight.abs().amax(1) / 127) ** 2).mean() / 12).sqrt()
    relative = float((found - exact).norm() / exact.norm())
    assert 0.8 * expected < relative < 1.25 * expected


def test_what_is_not_finite_makes_its_token_nan_and_no_other():
    _, matrix, generator = matrix_of(12, 40, 0.3, 1)
    x = torch.randn(20, 40, generator=generator)
    clean = int8_compute(x, matrix, None, None)
    for row, column, value in ((3, 0, "nan"), (7, 39, "inf"), (11, 20, "-inf")):
        x[row, column] = float(value)
    found = int8_compute(x, matrix, None, None)
    bad = [3, 7, 11]
    assert bool(found[bad].isnan().all())
    good = [i for i in range(20) if i not in bad]
    assert torch.equal(found[good], clean[good])


@needs_kernels
def test_without_8_bit_products_the_same_is_computed_densely(monkeypatch):
    if not library().int8:
        pytest.skip("this instruction set has no 8-bit products")
    _, matrix, generator = matrix_of(24, 48, 0.5, 2)
    x = torch.randn(10, 48, generator=generator)
    fast = int8_compute(x, matrix, None, "gelu")
    monkeypatch.setattr(library(), "int8", False)
    torch.testing.assert_close(int8_compute(x, matrix, None, "gelu"), fast, rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("make", [nn.Linear, lambda i, o: Conv1D(o, i)], ids=["Linear", "Conv1D"])
def test_a_layer_goes_to_8_bits_and_back(make):
    torch.manual_seed(0)
    linear, x = make(48, 32), torch.randn(2, 9, 48)
    before, state = linear(x).detach(), {k: v.clone() for k, v in linear.state_dict().items()}
    to_kernels(linear, "int8")
    with torch.no_grad():
        found = linear(x)
        assert 0 < float((found - before).norm() / before.norm()) < 0.03
        linear.weight.mul_(2.0)
        torch.testing.assert_close(linear(x) - linear.bias, 2 * (found - linear.bias), rtol=1e-4, atol=1e-5)
        linear.weight.div_(2.0)
    # training is dense and exact
    torch.testing.assert_close(linear(x), before)
    from_kernels(linear)
    assert torch.equal(linear(x), before)
    assert all(torch.equal(linear.state_dict()[k], v) for k, v in state.items())


@pytest.mark.slow
@needs_kernels
# torch's own compiler, when it is first imported
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_torch_compile_takes_it_whole():
    torch.manual_seed(0)
    linear = nn.Linear(48, 32)
    to_kernels(linear, "int8", "gelu")
    compiled = torch.compile(linear, fullgraph=True)
    for tokens in (3, 40):
        x = torch.randn(tokens, 48)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), linear(x))


@pytest.mark.parametrize(
    ("weight", "word"),
    [
        (torch.zeros(3), "has to be a matrix"),
        (torch.zeros(0, 3), "has to be a matrix"),
        (torch.tensor([[1.0, float("nan")]]), "NaN or infinity"),
    ],
)
def test_what_cannot_be_packed_is_refused(weight, word):
    with pytest.raises(InputError, match=word):
        pack_int8(weight)


@needs_kernels
@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda m: {"column": (m.column.int() + 60).to(torch.uint16)}, "column lies outside"),
        (lambda m: {"start": m.start.flip(0).contiguous()}, "starts do not rise"),
        (lambda m: {"value": m.value[1:].contiguous()}, "not as long"),
        (lambda m: {"shape": (m.shape[0] + 4, m.shape[1])}, "needs a scale"),
        (lambda m: {"value": m.value.float()}, "contiguous torch.int8"),
    ],
)
def test_a_broken_matrix_is_refused(change, word):
    _, matrix, _ = matrix_of(16, 40, 0.2, 3)
    fields = {name: getattr(matrix, name) for name in ("shape", "start", "column", "value", "scale", "sum")}
    with pytest.raises(InputError, match=word):
        Int8Matrix(**(fields | change(matrix)))
