"""Attention by the kernels equals the formula in double precision."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from kernel_oracle import PATHS, needs_kernels

from dsee.errors import InputError
from dsee.kernels import attention, library

EPS = torch.finfo(torch.float32).eps


def heads(batch, count, tokens, dim, generator):
    """As transformers makes them: (batch, tokens, heads x dim), seen as (batch, heads, tokens, dim)."""
    return torch.randn(batch, tokens, count, dim, generator=generator).transpose(1, 2)


def oracle(query, key, value, mask, scale, causal):
    """The formula, and what single precision may be off by: the error of n-term sums goes into the exponent."""
    groups = query.shape[1] // key.shape[1]
    q, k, v = query.double(), key.double().repeat_interleave(groups, 1), value.double().repeat_interleave(groups, 1)
    scores, size = scale * q @ k.transpose(2, 3), abs(scale) * q.abs() @ k.abs().transpose(2, 3)
    forbidden = torch.zeros(scores.shape, dtype=torch.bool)
    if mask is not None:
        forbidden = ~mask.expand(scores.shape) if mask.dtype == torch.bool else forbidden
        if mask.dtype != torch.bool:
            scores, size = scores + mask.double(), size + mask.double().abs().nan_to_num(0, 0, 0)
    if causal:
        forbidden = forbidden | ~torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    weights = scores.masked_fill(forbidden, float("-inf")).softmax(-1).nan_to_num(0.0)
    found = weights @ v
    off = (query.shape[3] + 8) * EPS * size.masked_fill(forbidden, 0).amax(-1, keepdim=True)
    bound = (weights @ v.abs()) * (2 * off + (key.shape[2] + 8) * EPS) + 1e-30
    return found.transpose(1, 2), bound.transpose(1, 2)


@st.composite
def cases(draw):
    kv, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    queries, keys = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    return {
        "batch": draw(st.integers(1, 3)),
        "heads": (kv * groups, kv),
        "tokens": (queries, queries if draw(st.booleans()) else keys),
        "dim": draw(st.sampled_from([1, 5, 8, 16, 24, 32, 33, 64, 80])),
        "mask": draw(st.sampled_from(["none", "bool", "keys", "bias", "infinite"])),
        "scale": draw(st.sampled_from([0.2, 1.0, 4.0, 0.0, -0.5])),
        "seed": draw(st.integers(0, 2**16)),
    }


def made(case):
    generator = torch.Generator().manual_seed(case["seed"])
    (count, kv), (queries, keys) = case["heads"], case["tokens"]
    query = heads(case["batch"], count, queries, case["dim"], generator)
    key, value = (heads(case["batch"], kv, keys, case["dim"], generator) for _ in range(2))
    random = torch.rand(case["batch"], 1, queries, keys, generator=generator)
    mask = {
        "none": None,
        "bool": random < 0.6,
        "keys": (random[:, :, :1] < 0.6).expand(-1, count, queries, -1),
        "bias": torch.randn(1, count, queries, keys, generator=generator),
        "infinite": torch.where(random < 0.5, 0.0, float("-inf")),
    }[case["mask"]]
    return query, key, value, mask


@needs_kernels
@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=60, deadline=None)
@given(case=cases(), causal=st.booleans())
def test_it_equals_the_formula(path, case, causal):
    query, key, value, mask = made(case)
    used = library().path
    library().use(path)
    try:
        found = attention(query, key, value, mask, scale=case["scale"], causal=causal)
    finally:
        library().use(used)
    expected, bound = oracle(query, key, value, mask, case["scale"], causal)
    assert found.is_contiguous()
    assert found.shape == expected.shape
    assert bool(((found - expected).abs() <= bound).all())


@settings(max_examples=30, deadline=None)
@given(case=cases(), causal=st.booleans())
def test_without_kernels_torch_computes_the_same(case, causal):
    query, key, value, mask = made(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsee.kernels.attend.library", lambda: None)
        found = attention(query, key, value, mask, scale=case["scale"], causal=causal)
    expected, bound = oracle(query, key, value, mask, case["scale"], causal)
    assert bool(((found - expected).abs() <= bound).all())


@needs_kernels
def test_a_forbidden_key_leaves_no_trace():
    query, key, value = (heads(1, 2, 9, 32, torch.Generator().manual_seed(i)) for i in range(3))
    allowed = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    allowed[..., 5] = False
    before = attention(query, key, value, allowed, scale=0.2)
    key[:, :, 5], value[:, :, 5] = 1e6, -1e6
    assert torch.equal(attention(query, key, value, allowed, scale=0.2), before)


@needs_kernels
def test_nan_and_infinity_go_where_they_belong():
    query, key, value = (heads(1, 1, 12, 16, torch.Generator().manual_seed(i)) for i in range(3))
    query[0, 0, 3, 2] = float("nan")
    found = attention(query, key, value, scale=0.2)
    assert found[0, 3].isnan().all()
    assert found[0, [i for i in range(12) if i != 3]].isfinite().all()


@needs_kernels
def test_threads_change_no_bit():
    query, key, value = (heads(2, 6, 50, 32, torch.Generator().manual_seed(i)) for i in range(3))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(attention(query, key, value, scale=0.2))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"query": torch.randn(1, 2, 3, 8).double()}, "query has to be float32"),
        ({"key": torch.randn(2, 3, 8)}, "key has to be float32"),
        ({"key": torch.randn(1, 2, 4, 8)}, "do not fit"),
        ({"query": torch.randn(1, 3, 3, 8)}, "do not fit"),
        ({"mask": torch.ones(1, 1, 3, 3, dtype=torch.int)}, "bool or float32"),
        ({"mask": torch.ones(1, 1, 2, 3, dtype=torch.bool)}, "does not fit"),
        ({"mask": torch.ones(3, 3, dtype=torch.bool)}, "does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(change, word):
    given_ = {name: torch.randn(1, 2, 3, 8) for name in ("query", "key", "value")} | {"mask": None} | change
    with pytest.raises(InputError, match=word):
        attention(given_["query"], given_["key"], given_["value"], given_["mask"], scale=1.0)


@pytest.mark.parametrize("tokens", [(0, 3), (3, 0)])
def test_no_queries_and_no_keys(tokens):
    queries, keys = tokens
    found = attention(torch.randn(1, 2, queries, 8), *torch.randn(2, 1, 2, keys, 8), scale=1.0)
    assert found.shape == (1, queries, 2, 8)
    assert not found.any()
