"""Every kernel equals the dense product, for every shape, tail, instruction set and number of threads."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_oracle import KINDS, PATHS, assert_equals_oracle, expected, needs_kernels, sparse_weight
from torch.nn import functional

from dsee.errors import InputError
from dsee.kernels import library, pack, pack_side, sparse_linear
from dsee.kernels.library import ACTIVATIONS
from dsee.modes import torch_threads

pytestmark = needs_kernels


@pytest.fixture(params=PATHS)
def path(request):
    before = library().path
    library().use(request.param)
    yield request.param
    library().use(before)


def using(path):
    library().use(path)


@pytest.fixture(autouse=True)
def best_path_afterwards():
    before = library().path
    yield
    library().use(before)


@settings(max_examples=150, deadline=None)
@given(
    path=st.sampled_from(PATHS),
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 70),
    columns=st.integers(1, 600),
    tokens=st.integers(0, 140),
    zeros=st.sampled_from([0.0, 0.3, 0.7, 0.97, 1.0]),
    rank=st.sampled_from([0, 1, 3, 8]),
    bias=st.booleans(),
    activation=st.sampled_from(list(ACTIVATIONS)),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_equals_the_dense_product(path, kind, rows, columns, tokens, zeros, rank, bias, activation, threads, seed):
    using(path)
    generator = torch.Generator().manual_seed(seed)
    weight = sparse_weight(rows, columns, zeros, kind, generator)
    x = torch.randn(tokens, columns, generator=generator)
    b = torch.randn(rows, generator=generator) if bias else None
    matrix, side, u, v = pack(weight, kind), None, None, None
    if rank:
        u, v = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
        side = pack_side(u, v, matrix)
    with torch_threads(threads):
        found = sparse_linear(x, matrix, b, side=side, activation=activation)
    assert_equals_oracle(found, expected(x, weight, b, u, v, activation))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 7, 8, 9, 16, 23, 24, 25, 31, 32, 33, 47, 48, 63, 64, 65, 96, 129])
def test_every_width_of_panel(path, kind, tokens):
    generator = torch.Generator().manual_seed(tokens)
    weight = sparse_weight(37, 515, 0.6, kind, generator)
    x = torch.randn(tokens, 515, generator=generator)
    assert_equals_oracle(sparse_linear(x, pack(weight, kind)), expected(x, weight))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 7, 96, 256])
def test_every_width_of_chunk(path, kind, chunk):
    generator = torch.Generator().manual_seed(chunk)
    weight = sparse_weight(24, 300, 0.5, kind, generator)
    x = torch.randn(30, 300, generator=generator)
    assert_equals_oracle(sparse_linear(x, pack(weight, kind, chunk=chunk)), expected(x, weight))


@pytest.mark.parametrize("kind", KINDS)
def test_empty_rows_full_rows_and_stored_zeros(path, kind):
    weight = torch.zeros(12, 40)
    weight[4:8] = torch.randn(4, 40)
    weight[8, 3] = 2.0
    x, bias = torch.randn(9, 40), torch.randn(12)
    assert_equals_oracle(sparse_linear(x, pack(weight, kind), bias), expected(x, weight, bias))
    everything = pack(torch.zeros(12, 40), kind, full=True)
    assert everything.density == 1.0
    assert torch.equal(sparse_linear(x, everything), torch.zeros(9, 12))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("tokens", [1, 30, 70])
def test_nan_and_infinity_reach_what_reads_them_and_nothing_else(path, kind, value, tokens):
    weight = torch.ones(8, 20)
    weight[:4, 5] = 0.0  # the first four rows do not read column 5
    x = torch.ones(tokens, 20)
    x[0, 5] = value
    found = sparse_linear(x, pack(weight, kind))
    assert torch.equal(found[:, :4], torch.full((tokens, 4), 19.0))
    assert torch.equal(found[1:, 4:], torch.full((tokens - 1, 4), 20.0))
    torch.testing.assert_close(found[0, 4:], torch.full((4,), 19.0 + value), equal_nan=True)


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name])
def test_activations_equal_torch_at_the_edges(path, name):
    ours = {"gelu_tanh": lambda t: functional.gelu(t, approximate="tanh")}.get(name) or getattr(functional, name)
    points = torch.cat([torch.linspace(-30, 30, 2001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, float("inf")])])
    one = pack(torch.ones(1, 1), "weights")
    found = sparse_linear(points[:, None], one, activation=name)[:, 0]
    # in doubles: torch's GELU of infinity is NaN in single precision where it computes with AVX-512
    torch.testing.assert_close(found, ours(points.double()).float(), rtol=5e-7, atol=1e-6)
    assert sparse_linear(torch.tensor([[float("nan")]]), one, activation=name).isnan().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_threads_changes_no_bit(path, kind):
    generator = torch.Generator().manual_seed(3)
    weight = sparse_weight(130, 260, 0.5, kind, generator)
    matrix = pack(weight, kind)
    side = pack_side(torch.randn(130, 4, generator=generator), torch.randn(4, 260, generator=generator), matrix)
    for tokens in (1, 5, 60, 700):
        x = torch.randn(tokens, 260, generator=generator)
        found = []
        for threads in (1, 2, 3, 8):
            with torch_threads(threads):
                found.append(sparse_linear(x, matrix, side=side, activation="gelu"))
        assert all(torch.equal(found[0], other) for other in found[1:])


def test_several_callers_at_once_get_their_own_answers():
    generator = torch.Generator().manual_seed(4)
    cases = []
    for i in range(6):
        weight = sparse_weight(64 + 4 * i, 128, 0.5, "blocks", generator)
        x = torch.randn(50 + i, 128, generator=generator)
        cases.append((x, pack(weight, "blocks"), expected(x, weight)))
    wrong = []

    def ask(x, matrix, oracle):
        for _ in range(60):
            want, most = oracle
            if not bool(((sparse_linear(x, matrix) - want).abs() <= most).all()):
                wrong.append(matrix.shape)

    with torch_threads(2):
        callers = [threading.Thread(target=ask, args=case) for case in cases]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_any_leading_shape_and_any_stride(kind):
    weight = sparse_weight(12, 20, 0.5, kind, torch.Generator().manual_seed(5))
    matrix, x = pack(weight, kind), torch.randn(20, 3, 4).permute(1, 2, 0)
    assert not x.is_contiguous()
    assert_equals_oracle(sparse_linear(x, matrix), expected(x, weight))
    assert sparse_linear(torch.randn(20), matrix).shape == (12,)
    assert sparse_linear(torch.randn(0, 5, 20), matrix).shape == (0, 5, 12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x": torch.zeros(3, 21)}, r"x has to be float32 \(..., 20\)"),
        ({"x": torch.zeros(3, 20, dtype=torch.float64)}, "x has to be float32"),
        ({"bias": torch.zeros(11)}, "bias has to be float32"),
        ({"activation": "gellu"}, "Did you mean 'gelu'"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    given = {"x": torch.zeros(3, 20), "matrix": pack(torch.ones(12, 20))} | change
    with pytest.raises(InputError, match=said):
        sparse_linear(**given)
