"""Keeping rows or columns of W, U, V and S2 equals slicing the dense matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from dsee import DseeConfig
from dsee.surgery.linear import select
from dsee.update import DseeLinear

KINDS = {"Linear": nn.Linear, "Conv1D": lambda width_in, width_out: Conv1D(width_out, width_in)}


def updated_linear(kind, rows, columns, n_sparse, seed, r=2):
    torch.manual_seed(seed)
    # the magnitude of the bias-free weight decides nothing here: the support is drawn
    config = DseeConfig(r=r, n_sparse=n_sparse, support="random", seed=seed, init_weights=False)
    layer = DseeLinear(KINDS[kind](columns, rows), "default", config, "layer")
    nn.init.normal_(layer.get_base_layer().bias)
    return layer


def sliced(matrix, keep, dim):
    return matrix[keep] if dim == 0 else matrix[:, keep]


def oriented(layer):
    """dW in (out, in) orientation."""
    delta = layer.get_delta_weight("default")
    return delta.T if layer.transposed else delta


@st.composite
def cases(draw):
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    dim = draw(st.sampled_from([0, 1]))
    keep = draw(st.sets(st.integers(0, (rows, columns)[dim] - 1), min_size=1).map(sorted))
    return rows, columns, draw(st.integers(1, rows * columns)), dim, keep, draw(st.integers(0, 999))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(case=cases())
def test_select_equals_slicing(kind, case):
    rows, columns, n_sparse, dim, keep, seed = case
    layer = updated_linear(kind, rows, columns, n_sparse, seed)
    weight, bias = layer.base_weight().clone(), layer.get_base_layer().bias.detach().clone()
    sparse, low_rank = layer.dsee_S["default"].dense(), layer.dsee_U["default"].weight @ layer.dsee_V["default"].weight

    select(layer, torch.tensor(keep), dim)

    assert layer.base_weight().equal(sliced(weight, keep, dim))
    assert layer.get_base_layer().bias.equal(bias[keep] if dim == 0 else bias)
    expected = sliced(sparse, keep, dim)
    if "default" in layer.dsee_S:
        assert layer.dsee_S["default"].dense().equal(expected)
    else:
        assert not expected.any()
    scale = layer.dsee_scaling["default"]
    torch.testing.assert_close(oriented(layer), scale * (sliced(low_rank, keep, dim) + expected), rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(case=cases())
def test_positions_stay_distinct_sorted_and_numbered_alike(case):
    rows, columns, n_sparse, dim, keep, seed = case
    layer = updated_linear("Linear", rows, columns, n_sparse, seed)
    dtype, places = layer.dsee_S["default"].indices.dtype, layer.dsee_S["default"].rows_and_columns()[dim]
    select(layer, torch.tensor(keep), dim)
    staying = int(torch.isin(places, torch.tensor(keep)).sum())
    if "default" not in layer.dsee_S:
        assert staying == 0
        return
    smaller = layer.dsee_S["default"]
    assert smaller.n_sparse == smaller.indices.numel() == staying
    assert smaller.indices.dtype == dtype
    assert (smaller.indices[1:] > smaller.indices[:-1]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [0, 1])
def test_the_smaller_layer_computes_what_the_slices_say(kind, dim):
    layer = updated_linear(kind, 6, 5, 11, seed=3)
    keep = [0, 2, 3]
    weight = sliced(layer.base_weight() + oriented(layer), keep, dim)
    bias = layer.get_base_layer().bias.detach()[keep] if dim == 0 else layer.get_base_layer().bias.detach()
    select(layer, torch.tensor(keep), dim)
    x = torch.randn(7, weight.shape[1])
    torch.testing.assert_close(layer(x).detach(), x @ weight.T + bias, rtol=1e-5, atol=1e-5)


def test_each_value_keeps_its_place():
    layer = updated_linear("Linear", 3, 4, 12, seed=0)
    sparse = layer.dsee_S["default"]
    with torch.no_grad():
        sparse.weight.copy_(torch.arange(1.0, 13.0))
    select(layer, torch.tensor([1, 3]), 1)
    assert layer.dsee_S["default"].indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert layer.dsee_S["default"].weight.tolist() == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]


@pytest.mark.parametrize("r", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_whose_entries_all_went_still_computes(kind, r):
    layer = updated_linear(kind, 6, 5, 1, seed=0, r=r)
    row = int(layer.dsee_S["default"].rows_and_columns()[0])
    keep = [i for i in range(6) if i != row]
    effective = (layer.base_weight() + oriented(layer))[keep]
    bias = layer.get_base_layer().bias.detach()[keep]
    select(layer, torch.tensor(keep), 0)
    assert "default" not in layer.dsee_S
    x = torch.randn(7, 5)
    torch.testing.assert_close(layer(x).detach(), x @ effective.T + bias, rtol=1e-5, atol=1e-5)
