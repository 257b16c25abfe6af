"""A whole encoder in one call equals its layers one by one, and the formula in doubles."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from kernel_oracle import PATHS, needs_kernels
from test_self_attention import in_doubles, product, projection
from torch.nn import functional

from dsee.errors import InputError
from dsee.kernels import library
from dsee.kernels.encoder import Encoder, EncoderLayer, Norm


def layer(width, heads, dim, inner, kind, zeros, generator, bias=True, activation="gelu", rank=0):
    """A layer whose numbers stay of size one."""
    shapes = [(heads * dim, width)] * 3 + [(width, heads * dim), (inner, width), (width, inner)]
    six = [projection(*shape, kind, zeros, generator, bias, rank) for shape in shapes]
    norms = tuple(
        Norm(1 + 0.1 * torch.randn(width, generator=generator), torch.randn(width, generator=generator), 1e-5)
        for _ in range(2)
    )
    return EncoderLayer(*six, norms, heads, dim**-0.5, activation)


def oracle(x, layers, mask):
    x = x.double()
    activations = {"gelu": functional.gelu, "relu": functional.relu, None: lambda y: y}
    for each in layers:
        three, dim = (each.query, each.key, each.value), each.query.matrix.shape[0] // each.heads
        seen = in_doubles(x, three, dim, mask, each.scale).flatten(2)
        x = normed(product(seen, each.output) + x, each.norms[0])
        x = normed(product(activations[each.activation](product(x, each.first)), each.second) + x, each.norms[1])
    return x


def normed(x, norm):
    return functional.layer_norm(x, x.shape[-1:], norm.gain.double(), norm.shift.double(), norm.eps)


@st.composite
def cases(draw):
    return {
        "batch": draw(st.integers(1, 3)),
        "tokens": draw(st.integers(1, 150)),
        # a layer each: heads, their width, neurons
        "shapes": draw(
            st.lists(
                st.tuples(st.integers(1, 4), st.sampled_from([4, 8, 20, 32]), st.integers(1, 90)),
                min_size=1,
                max_size=3,
            )
        ),
        "width": draw(st.sampled_from([16, 63, 64, 300])),
        "kind": draw(st.sampled_from(["blocks", "weights"])),
        "zeros": draw(st.sampled_from([0.0, 0.5, 0.9, 1.1])),
        "bias": draw(st.booleans()),
        "rank": draw(st.sampled_from([0, 0, 1, 3, 8])),
        "activation": draw(st.sampled_from(["gelu", "relu", None])),
        "mask": draw(st.sampled_from(["none", "keys", "any", "bias"])),
        "seed": draw(st.integers(0, 2**16)),
    }


def made(case):
    """Input, layers and mask."""
    generator = torch.Generator().manual_seed(case["seed"])
    batch, tokens = case["batch"], case["tokens"]
    x = torch.randn(batch, tokens, case["width"], generator=generator)
    given = (case["kind"], case["zeros"], generator, case["bias"], case["activation"], case["rank"])
    found = [layer(case["width"], heads, dim, inner, *given) for heads, dim, inner in case["shapes"]]
    random = torch.rand(batch, 1, tokens, tokens, generator=generator)
    mask = {
        "none": None,
        "keys": random[:, :, :1] < 0.7,
        "any": random < 0.7,
        "bias": torch.randn(1, 1, tokens, tokens, generator=generator),
    }[case["mask"]]
    return x, found, mask


def close(found, expected):
    """A norm divides by a spread of about one; sums of at most 300 terms in each of six products of three layers."""
    torch.testing.assert_close(found.double(), expected.double(), rtol=3e-4, atol=3e-4)


@needs_kernels
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("threads", [1, 2])
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_it_equals_the_formula(path, threads, case):
    used, before = library().path, torch.get_num_threads()
    library().use(path)
    torch.set_num_threads(threads)
    try:
        # packed for this path's panels
        x, layers, mask = made(case)
        kept = x.clone()
        found = Encoder(layers)(x, mask)
    finally:
        library().use(used)
        torch.set_num_threads(before)
    assert torch.equal(x, kept)
    close(found, oracle(x, layers, mask))


@settings(max_examples=20, deadline=None)
@given(case=cases())
def test_without_kernels_torch_computes_the_same(case):
    x, layers, mask = made(case)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("attend", "self_attention", "product", "norm", "encoder"):
            patch.setattr(f"dsee.kernels.{name}.library", lambda: None)
        found = Encoder(layers)(x, mask)
    close(found, oracle(x, layers, mask))


@needs_kernels
@pytest.mark.parametrize("kind", ["blocks", "weights"])
def test_the_number_of_threads_changes_no_bit(kind):
    generator, before = torch.Generator().manual_seed(0), torch.get_num_threads()
    layers = [layer(64, 4, 16, 100, kind, 0.5, generator) for _ in range(2)]
    x, encoder, found = torch.randn(3, 70, 64, generator=generator), Encoder(layers), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(encoder(x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found[1:])


@needs_kernels
def test_each_sequence_is_what_it_is_alone():
    generator = torch.Generator().manual_seed(0)
    encoder = Encoder([layer(48, 3, 16, 64, "blocks", 0.5, generator) for _ in range(2)])
    x, allowed = torch.randn(4, 37, 48, generator=generator), torch.ones(4, 1, 1, 37, dtype=torch.bool)
    allowed[1, ..., 30:] = False
    together = encoder(x, allowed)
    for i in range(4):
        assert torch.equal(encoder(x[i : i + 1], allowed[i : i + 1])[0], together[i])
    x[1, 30:] = 1e3
    assert torch.equal(encoder(x, allowed)[1, :30], together[1, :30])


@needs_kernels
def test_not_a_number_stays_in_its_sequence():
    generator = torch.Generator().manual_seed(0)
    encoder = Encoder([layer(48, 3, 16, 64, "blocks", 0.5, generator)])
    x = torch.randn(2, 9, 48, generator=generator)
    x[0, 3, 5] = float("nan")
    found = encoder(x)
    assert found[0].isnan().all()
    assert not found[1].isnan().any()


@needs_kernels
@pytest.mark.parametrize("shape", [(0, 5, 16), (2, 0, 16)])
def test_nothing_makes_nothing(shape):
    encoder = Encoder([layer(16, 2, 8, 12, "blocks", 0.5, torch.Generator().manual_seed(0))])
    assert encoder(torch.empty(shape)).shape == shape


def test_what_does_not_fit_is_refused():
    generator = torch.Generator().manual_seed(0)
    good, wide = (layer(width, 2, 8, 12, "blocks", 0.5, generator) for width in (16, 20))
    loose = layer(16, 2, 8, 12, "weights", 0.5, generator)
    narrow = layer(16, 2, 6, 12, "blocks", 0.5, generator)
    for bad in ([], [good, wide], [good, loose], [narrow]):
        with pytest.raises(InputError, match="do not fit together"):
            Encoder(bad)
    x, encoder = torch.randn(1, 6, 16, generator=generator), Encoder([good])
    for wrong in (x.double(), x[0], x[..., :8]):
        with pytest.raises(InputError, match=r"float32 \(batch, tokens, 16\)"):
            encoder(wrong)
    for mask in (torch.ones(6, 6, dtype=torch.bool), torch.ones(1, 1, 6, 5), torch.ones(1, 1, 6, 6, dtype=torch.int8)):
        with pytest.raises(InputError, match="does not fit"):
            encoder(x, mask)
