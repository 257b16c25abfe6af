"""The sparse product equals the dense one, for every shape and support."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsee.update import sparse_product
from dsee.update.sparse_product import add_sparse_product
from update.kernel import SETTINGS, case, oracle, tolerance


def assert_equals_dense(y, x, values, indices):
    expected = oracle(y, x, values, indices)
    scale = float(x.abs().max() * values.abs().max() + y.abs().max()) if values.numel() and x.numel() else 1.0
    bound = tolerance(y.dtype, max(1, values.numel()), scale)
    with torch.no_grad():
        plain = add_sparse_product(y.clone(), x, values, indices)
    torch.testing.assert_close(plain, expected, **bound)
    tracked = add_sparse_product(y.clone(), x, values.clone().requires_grad_(), indices)
    assert torch.equal(tracked.detach(), plain), "with and without autograd the numbers are the same"


@SETTINGS
@given(
    lead=st.lists(st.integers(1, 4), max_size=3),
    out_features=st.integers(1, 9),
    in_features=st.integers(1, 9),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_it_equals_the_dense_product(lead, out_features, in_features, share, seed):
    n = round(share * out_features * in_features)
    assert_equals_dense(*case(lead, out_features, in_features, n, seed=seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 7, 35], ids=["none", "one", "odd", "all of W"])
def test_the_edges_of_n_hold(n, dtype):
    assert_equals_dense(*case((3, 2), 5, 7, n, dtype=dtype))


@pytest.mark.parametrize("lead", [(), (1,), (0,), (2, 0), (2, 3, 2)], ids=str)
def test_leading_shapes_hold_one_vector_and_no_token_included(lead):
    y, x, values, indices = case(lead, 5, 7, 9)
    assert add_sparse_product(y.clone(), x, values, indices).shape == y.shape
    assert_equals_dense(y, x, values, indices)


@pytest.mark.parametrize("what", ["rows", "columns"])
def test_entries_that_share_a_row_or_a_column_add_up(what):
    y, x, values, _ = case((4,), 5, 5, 5)
    line, spread = torch.full((5,), 2), torch.arange(5)
    rows, columns = (line, spread) if what == "rows" else (spread, line)
    assert_equals_dense(y, x, values, rows * 5 + columns)


@pytest.mark.parametrize("order", ["transposed", "strided", "expanded"])
def test_an_input_that_is_not_contiguous_is_read_rightly(order):
    y, x, values, indices = case((6, 4), 5, 7, 9)
    x = {
        "transposed": x.transpose(0, 1).contiguous().transpose(0, 1),
        "strided": torch.randn(6, 4, 14, generator=torch.Generator().manual_seed(1))[..., ::2],
        "expanded": x[:1].expand(6, 4, 7),
    }[order]
    assert not x.is_contiguous()
    assert_equals_dense(y, x, values, indices)


def test_the_result_is_written_into_y():
    y, x, values, indices = case((6, 4), 5, 7, 9)
    expected = oracle(y, x, values, indices)
    for grad in (False, True):
        target = y.clone()
        with torch.set_grad_enabled(grad):
            result = add_sparse_product(target, x, values.clone().requires_grad_(grad), indices)
        assert result.data_ptr() == target.data_ptr()
        torch.testing.assert_close(target.detach(), expected, **tolerance(y.dtype, 9, 20.0))


def test_x_is_only_read():
    y, x, values, indices = case((6, 4), 5, 7, 9)
    before = x.clone()
    add_sparse_product(y, x, values, indices)
    assert torch.equal(x, before)


@pytest.mark.parametrize("floats", [1, 9, 10, 45, 53, 54, 55, 10**6], ids=lambda f: f"chunk={f}")
def test_the_size_of_a_chunk_does_not_matter(floats, monkeypatch):
    # 6 tokens x 9 entries = 54 floats: a token a chunk, uneven chunks, exactly one chunk, one chunk with room
    arguments = case((6,), 5, 7, 9)
    whole = add_sparse_product(arguments[0].clone(), *arguments[1:])
    monkeypatch.setattr(sparse_product, "CHUNK_FLOATS", floats)
    assert torch.equal(add_sparse_product(arguments[0].clone(), *arguments[1:]), whole)
    assert_equals_dense(*arguments)


def test_a_small_chunk_is_really_cut_into_tokens(monkeypatch):
    # or the test above would show nothing
    monkeypatch.setattr(sparse_product, "CHUNK_FLOATS", 10)
    assert sparse_product._token_chunks(3, 9) == [slice(0, 1), slice(1, 2), slice(2, 3)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_with_values_in_full_precision(dtype):
    y, x, values, indices = case((4, 3), 5, 7, 9)
    y, x = y.to(dtype), x.to(dtype)
    expected = oracle(y.double(), x.double(), values.double(), indices)
    result = add_sparse_product(y.clone(), x, values, indices)
    assert result.dtype == dtype
    scale = float(x.abs().max()) * float(values.abs().max()) + float(y.abs().max())
    torch.testing.assert_close(result.double(), expected, **tolerance(dtype, 9, scale))


@pytest.mark.parametrize("n", [1, 9, 35])
def test_by_a_matrix_product_the_numbers_are_the_same(n, monkeypatch):
    monkeypatch.setattr(sparse_product, "DENSE_FROM", 0.0)
    monkeypatch.setattr(sparse_product, "DENSE_TOKENS", 0)
    assert_equals_dense(*case((3, 2), 5, 7, n))


def test_positions_may_be_int32():
    y, x, values, indices = case((3, 2), 5, 7, 9)
    assert_equals_dense(y, x, values, indices.to(torch.int32))
