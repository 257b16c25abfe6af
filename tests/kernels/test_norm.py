"""Sum and layer norm in one pass equal the formula in double precision."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from kernel_oracle import PATHS, needs_kernels

from dsee.errors import InputError
from dsee.kernels import add_norm, library

EPS = torch.finfo(torch.float32).eps


def formula(a, b, gain, shift, eps):
    """The norm of a + b in double precision, and what single precision may be off by."""
    s = a.double() + b.double()
    mean = s.mean(-1, keepdim=True)
    by = ((s - mean).pow(2).mean(-1, keepdim=True) + eps).rsqrt()
    found = gain * (s - mean) * by + shift
    # the sum and the mean are rounded at the size of the numbers, the rest at the size of the result
    size = s.abs() + s.abs().mean(-1, keepdim=True)
    width = a.shape[-1]
    bound = 8 * EPS * (1 + width**0.5) * (gain.abs() * by * size * (1 + (s - mean).abs() * by) + shift.abs())
    return found, bound.double() + 1e-30


@needs_kernels
@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 9),
    width=st.integers(1, 130),
    far=st.sampled_from([0.0, 1.0, 300.0]),
    seed=st.integers(0, 2**16),
    threads=st.sampled_from([1, 3]),
)
def test_equals_the_formula(path, tokens, width, far, seed, threads):
    draw = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(tokens, width, generator=draw) + far for _ in range(2))
    gain, shift = torch.randn(width, generator=draw), torch.randn(width, generator=draw)
    before, kernels = torch.get_num_threads(), library()
    kernels.use(path)
    torch.set_num_threads(threads)
    try:
        found = add_norm(a, b, gain, shift, 1e-12)
        kept = a.clone()
        assert torch.equal(add_norm(kept, b, gain, shift, 1e-12, into_a=True), found)
        assert torch.equal(kept, found)
    finally:
        torch.set_num_threads(before)
        kernels.use(PATHS[-1])
    expected, bound = formula(a, b, gain, shift, 1e-12)
    if width > 1:
        # of a single feature nothing but noise over eps is left
        assert ((found.double() - expected).abs() <= bound).all()
    else:
        assert found.shape == a.shape


@needs_kernels
@pytest.mark.parametrize("path", PATHS)
def test_equal_features_give_the_shift_and_nan_stays_in_its_token(path):
    library().use(path)
    try:
        a, b = torch.ones(3, 40), torch.full((3, 40), 2.0)
        a[1, 7] = float("nan")
        gain, shift = torch.randn(40), torch.randn(40)
        found = add_norm(a, b, gain, shift, 1e-5)
    finally:
        library().use(PATHS[-1])
    assert torch.equal(found[0], shift)
    assert torch.equal(found[2], shift)
    assert found[1].isnan().all()


def test_no_tokens_and_strange_strides():
    gain, shift = torch.ones(6), torch.zeros(6)
    assert add_norm(torch.zeros(0, 6), torch.zeros(0, 6), gain, shift, 1e-5).shape == (0, 6)
    a, b = torch.randn(6, 4).T, torch.randn(4, 12)[:, ::2]
    expected = torch.nn.functional.layer_norm(a + b, (6,), gain, shift, 1e-5)
    torch.testing.assert_close(add_norm(a, b, gain, shift, 1e-5), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"b": torch.zeros(2, 5)}, r"b has to be float32 \(2, 6\)"),
        ({"gain": torch.ones(5)}, r"gain has to be float32 \(6,\)"),
        ({"shift": torch.ones(6).double()}, r"shift has to be float32"),
        ({"a": torch.zeros(2, 6).half()}, r"a has to be float32"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    given = {"a": torch.zeros(2, 6), "b": torch.zeros(2, 6), "gain": torch.ones(6), "shift": torch.ones(6)} | change
    with pytest.raises(InputError, match=said):
        add_norm(**given, eps=1e-5)


def test_without_kernels_torch_computes_the_same(monkeypatch):
    monkeypatch.setattr("dsee.kernels.norm.library", lambda: None)
    a, b = torch.randn(2, 6), torch.randn(2, 6)
    gain, shift = torch.randn(6), torch.randn(6)
    expected = torch.nn.functional.layer_norm(a + b, (6,), gain, shift, 1e-5)
    assert torch.equal(add_norm(a, b, gain, shift, 1e-5), expected)
