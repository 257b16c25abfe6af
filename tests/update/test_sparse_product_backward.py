"""The gradients of the sparse product equal those of the dense one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsee.update import sparse_product
from dsee.update.sparse_product import add_sparse_product
from update.kernel import SETTINGS, case, oracle, tolerance


def gradients(product, y, x, values, indices, weights):
    leaves = [t.clone().requires_grad_() for t in (y, x, values)]
    # the kernel writes into y, and a leaf cannot be written into
    result = product(leaves[0] * 1.0, leaves[1], leaves[2], indices)
    return torch.autograd.grad((result * weights).sum(), leaves, allow_unused=True)


def assert_gradients_equal_dense(y, x, values, indices):
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(y.dtype)
    ours = gradients(add_sparse_product, y, x, values, indices, weights)
    theirs = gradients(oracle, y, x, values, indices, weights)
    terms = max(1, values.numel(), x[..., 0].numel())
    for name, mine, other in zip(("y", "x", "values"), ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **tolerance(y.dtype, terms, 16.0), msg=lambda m, n=name: f"{n}: {m}")


@SETTINGS
@given(
    lead=st.lists(st.integers(1, 4), max_size=3),
    out_features=st.integers(1, 8),
    in_features=st.integers(1, 8),
    share=st.floats(0.1, 1),
    seed=st.integers(0, 1000),
)
def test_gradients_equal_those_of_the_dense_product(lead, out_features, in_features, share, seed):
    n = max(1, round(share * out_features * in_features))
    assert_gradients_equal_dense(*case(lead, out_features, in_features, n, seed=seed))


@pytest.mark.parametrize("floats", [1, 10, 53, 54, 55], ids=lambda f: f"chunk={f}")
def test_the_size_of_a_chunk_does_not_matter_for_gradients(floats, monkeypatch):
    monkeypatch.setattr(sparse_product, "CHUNK_FLOATS", floats)
    assert_gradients_equal_dense(*case((6,), 5, 7, 9))


@pytest.mark.parametrize("n", [1, 7, 12], ids=["one", "odd", "all of W"])
def test_gradcheck_in_double_precision(n):
    y, x, values, indices = case((2, 3), 3, 4, n, dtype=torch.float64)

    def product(y, x, values):
        return add_sparse_product(y * 1.0, x, values, indices)

    leaves = [t.clone().requires_grad_() for t in (y, x, values)]
    assert torch.autograd.gradcheck(product, leaves)


def test_gradients_of_a_non_contiguous_input_equal_the_dense_ones():
    y, x, values, indices = case((6, 4), 5, 7, 9)
    assert_gradients_equal_dense(y, x.transpose(0, 1).contiguous().transpose(0, 1), values, indices)


@pytest.mark.parametrize("needs", ["y", "x", "values"])
def test_a_single_wanted_gradient_comes_alone(needs):
    arguments = dict(zip(("y", "x", "values", "indices"), case((4,), 5, 7, 9), strict=True))
    leaf = arguments[needs].clone().requires_grad_()
    given = arguments | {needs: leaf}
    result = add_sparse_product(given["y"] * 1.0, *(given[k] for k in ("x", "values", "indices")))
    (ours,) = torch.autograd.grad(result.square().sum(), leaf)
    expected = oracle(*given.values())
    (theirs,) = torch.autograd.grad(expected.square().sum(), leaf)
    torch.testing.assert_close(ours, theirs, **tolerance(torch.float32, 40, 64.0))


def test_no_gradient_is_recorded_when_none_is_wanted():
    assert not add_sparse_product(*case((4,), 5, 7, 9)).requires_grad


def sum_over_tokens(n):
    # 4,097 products of 1: summed in bf16 one by one the sum would stop at 256, and 4,097 is no bf16 number
    x = torch.ones(4097, 10, dtype=torch.bfloat16)
    values = torch.zeros(n, requires_grad=True)
    add_sparse_product(torch.zeros(4097, 10, dtype=torch.bfloat16), x, values, torch.arange(n)).sum().backward()
    return values.grad.tolist()


def test_a_sum_over_many_tokens_in_bfloat16_keeps_its_small_terms():
    assert sum_over_tokens(1) == [4097.0]


def test_a_matrix_product_in_bfloat16_rounds_once():
    assert sum_over_tokens(100) == [4096.0] * 100


@pytest.mark.parametrize("floats", [1, 7, 20, 35, 10**6], ids=lambda f: f"block={f}")
@pytest.mark.parametrize("n", [9, 35])
def test_by_matrix_products_the_numbers_are_the_same(n, floats, monkeypatch):
    # a row a block, uneven blocks, one block, one with room
    monkeypatch.setattr(sparse_product, "DENSE_FROM", 0.0)
    monkeypatch.setattr(sparse_product, "DENSE_TOKENS", 0)
    monkeypatch.setattr(sparse_product, "BLOCK_FLOATS", floats)
    assert_gradients_equal_dense(*case((2, 3), 5, 7, n))


def test_gradcheck_of_the_matrix_products(monkeypatch):
    monkeypatch.setattr(sparse_product, "DENSE_TOKENS", 0)
    y, x, values, indices = case((2, 3), 3, 4, 7, dtype=torch.float64)
    leaves = [t.clone().requires_grad_() for t in (y, x, values)]
    assert torch.autograd.gradcheck(lambda y, x, v: add_sparse_product(y * 1.0, x, v, indices), leaves)


def test_many_entries_and_tokens_are_multiplied_as_a_matrix_and_few_are_gathered():
    assert sparse_product._many(n=150, tokens=64, out_features=100, in_features=100)
    assert not sparse_product._many(n=149, tokens=64, out_features=100, in_features=100)
    assert not sparse_product._many(n=150, tokens=63, out_features=100, in_features=100)


def test_nothing_dense_and_nothing_per_entry_is_kept_for_the_backward():
    tokens, n = 64, 500
    _, x, values, indices = case((tokens,), 40, 30, n)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        add_sparse_product(torch.zeros(tokens, 40), x, values.requires_grad_(), indices)
    # x, which V keeps anyway, and the layer's own positions
    assert sorted(saved) == sorted([x.numel(), n])


def kept_for(x, values):
    """Sizes of what a call keeps for the backward."""
    y, _, _, indices = case((64,), 40, 30, 500)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        add_sparse_product(y, x, values, indices)
    return sorted(saved)


def test_only_what_the_wanted_gradients_need_is_kept():
    _, x, values, _ = case((64,), 40, 30, 500)
    # the positions have as many entries as the values
    assert kept_for(x.clone().requires_grad_(), values) == [500, 500]
    assert kept_for(x, values.clone().requires_grad_()) == [500, 64 * 30]


def test_a_second_derivative_is_refused_rather_than_wrong():
    y, x, values, indices = case((4,), 5, 7, 9)
    x.requires_grad_()
    result = add_sparse_product(y, x, values.requires_grad_(), indices).square().sum()
    (first,) = torch.autograd.grad(result, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
