"""Query, key, value and attention in one call equal the four calls."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from kernel_oracle import PATHS, expected, needs_kernels, sparse_weight
from torch.nn import functional

from dsee.errors import InputError
from dsee.kernels import attention, library, pack
from dsee.kernels.product import pack_side
from dsee.kernels.self_attention import Projection, fit_together, self_attention


def projection(rows, columns, kind, zeros, generator, bias=True, rank=0):
    """About unit-sized results, whatever the shape; a side branch where it has a rank."""
    matrix = pack(sparse_weight(rows, columns, zeros, kind, generator) / columns**0.5, kind)
    side = None
    if rank:
        u, v = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
        side = pack_side(u, v / (rank * columns) ** 0.5, matrix)
    return Projection(matrix, torch.randn(rows, generator=generator) if bias else None, side)


def product(x, each):
    """What a projection makes of x, in doubles."""
    u, v = (None, None) if each.side is None else (each.side.dense_u, each.side.v.dense())
    return expected(x, each.matrix.dense(), each.bias, u, v)[0]


def in_doubles(x, three, dim, mask, scale):
    q, k, v = (product(x, each).unflatten(-1, (-1, dim)).transpose(1, 2) for each in three)
    scores = scale * q @ k.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.double()
    return (scores.softmax(-1).nan_to_num(0.0) @ v).transpose(1, 2)


@st.composite
def cases(draw):
    return {
        "batch": draw(st.integers(1, 3)),
        "tokens": draw(st.integers(1, 150)),
        "heads": draw(st.integers(1, 5)),
        "dim": draw(st.sampled_from([4, 8, 12, 16, 20, 32, 64])),
        "columns": draw(st.sampled_from([1, 7, 64, 300])),
        "kind": draw(st.sampled_from(["blocks", "weights"])),
        "zeros": draw(st.sampled_from([0.0, 0.5, 0.9, 1.1])),
        "bias": draw(st.booleans()),
        "rank": draw(st.sampled_from([0, 0, 1, 3, 8])),
        "mask": draw(st.sampled_from(["none", "keys", "any", "bias"])),
        "seed": draw(st.integers(0, 2**16)),
    }


def made(case):
    generator = torch.Generator().manual_seed(case["seed"])
    batch, tokens, rows = case["batch"], case["tokens"], case["heads"] * case["dim"]
    x = torch.randn(batch, tokens, case["columns"], generator=generator)
    three = [
        projection(rows, case["columns"], case["kind"], case["zeros"], generator, case["bias"], case["rank"])
        for _ in range(3)
    ]
    random = torch.rand(batch, 1, tokens, tokens, generator=generator)
    mask = {
        "none": None,
        "keys": random[:, :, :1] < 0.7,
        "any": random < 0.7,
        "bias": torch.randn(1, case["heads"], tokens, tokens, generator=generator),
    }[case["mask"]]
    return x, three, mask


@needs_kernels
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("threads", [1, 2])
@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_it_equals_the_formula(path, threads, case):
    x, three, mask = made(case)
    used, before = library().path, torch.get_num_threads()
    library().use(path)
    torch.set_num_threads(threads)
    try:
        # packed for this path's panels
        three = [Projection(pack(each.matrix.dense(), case["kind"]), each.bias) for each in three]
        found = self_attention(x, *three, case["dim"], mask, scale=case["dim"] ** -0.5)
    finally:
        library().use(used)
        torch.set_num_threads(before)
    assert found.is_contiguous()
    # results are averages of values of size 1 to 4; sums of at most 300 terms, and scores that go into an exponent
    torch.testing.assert_close(
        found.double(), in_doubles(x, three, case["dim"], mask, case["dim"] ** -0.5), rtol=1e-4, atol=1e-4
    )


@settings(max_examples=20, deadline=None)
@given(case=cases())
def test_without_kernels_torch_computes_the_same(case):
    x, three, mask = made(case)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("attend", "self_attention", "product"):
            patch.setattr(f"dsee.kernels.{name}.library", lambda: None)
        found = self_attention(x, *three, case["dim"], mask, scale=0.3)
    torch.testing.assert_close(found.double(), in_doubles(x, three, case["dim"], mask, 0.3), rtol=1e-4, atol=1e-4)


@needs_kernels
def test_a_long_sequence_of_many_heads_is_divided_and_stays_the_same():
    # more queries, keys and values than the kernels work on at a time: 3 * 16 * 64 * 300 numbers
    generator = torch.Generator().manual_seed(0)
    three = [projection(16 * 64, 64, "blocks", 0.5, generator) for _ in range(3)]
    x = torch.randn(1, 300, 64, generator=generator)
    q, k, v = (
        functional.linear(x, each.matrix.dense(), each.bias).unflatten(-1, (16, 64)).transpose(1, 2) for each in three
    )
    found = self_attention(x, *three, 64, scale=0.125)
    torch.testing.assert_close(found, attention(q, k, v, scale=0.125), rtol=1e-4, atol=1e-4)


@needs_kernels
def test_a_forbidden_token_leaves_no_trace():
    generator = torch.Generator().manual_seed(0)
    three = [projection(64, 48, "blocks", 0.5, generator) for _ in range(3)]
    x, allowed = torch.randn(2, 20, 48, generator=generator), torch.ones(2, 1, 1, 20, dtype=torch.bool)
    allowed[1, ..., 15:] = False
    before = self_attention(x, *three, 16, allowed, scale=0.2)
    x[1, 15:] = 1e6
    assert torch.equal(self_attention(x, *three, 16, allowed, scale=0.2)[1, :15], before[1, :15])


@needs_kernels
def test_an_empty_batch_is_an_empty_batch():
    three = [projection(16, 8, "weights", 0.5, torch.Generator().manual_seed(0)) for _ in range(3)]
    assert self_attention(torch.empty(0, 5, 8), *three, 4, scale=1.0).shape == (0, 5, 4, 4)


def test_what_does_not_fit_is_refused():
    generator = torch.Generator().manual_seed(0)
    three = [projection(24, 16, "blocks", 0.5, generator) for _ in range(3)]
    x = torch.randn(1, 6, 16, generator=generator)
    other = projection(20, 16, "blocks", 0.5, generator)
    loose = projection(24, 16, "weights", 0.5, generator)
    assert not fit_together(three[0], other, three[2], 4)
    for bad in ((three[0], other, three[2], 4), (three[0], three[1], loose, 4), (*three, 6), (*three, 16), (*three, 0)):
        with pytest.raises(InputError, match="do not fit together"):
            self_attention(x, *bad, scale=1.0)
    for wrong in (x.double(), x[0], x[..., :8]):
        with pytest.raises(InputError, match=r"float32 \(batch, tokens, 16\)"):
            self_attention(wrong, *three, 4, scale=1.0)
    for mask in (torch.ones(6, 6, dtype=torch.bool), torch.ones(1, 1, 6, 5), torch.ones(1, 1, 6, 6, dtype=torch.int8)):
        with pytest.raises(InputError, match="does not fit"):
            self_attention(x, *three, 4, mask, scale=1.0)
