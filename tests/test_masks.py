"""Masks on bare linears: one bit a weight, exact, in no state dict, and zeros that are written."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from dsee.errors import InputError
from dsee.masks import BUFFER, get_mask, hold, masked_linears, oriented, pack, set_mask, unpack

LINEARS = {"Linear": lambda: nn.Linear(7, 5), "Conv1D": lambda: Conv1D(5, 7)}


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 99))
def test_packing_comes_back(rows, columns, seed):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = pack(mask)
    assert bits.shape == (-(-rows * columns // 8),)
    assert torch.equal(unpack(bits, (rows, columns)), mask)


def test_the_first_weight_is_the_lowest_bit():
    mask = torch.tensor([[True, False, False, True], [False] * 4, [True] + [False] * 3])
    assert pack(mask).tolist() == [0b1001, 0b1]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_bits_of_another_shape_are_refused(count):
    with pytest.raises(InputError, match="2 bytes"):
        unpack(torch.zeros(count, dtype=torch.uint8), (3, 4))


@pytest.mark.parametrize("kind", LINEARS)
def test_a_mask_is_out_by_in_and_its_zeros_are_written(kind):
    linear, mask = LINEARS[kind](), torch.rand(5, 7) < 0.5
    before = oriented(linear).clone()
    set_mask(linear, mask)
    assert torch.equal(get_mask(linear), mask)
    assert torch.equal(oriented(linear), before.where(mask, torch.zeros(())))
    assert BUFFER not in linear.state_dict()
    assert torch.equal(get_mask(copy.deepcopy(linear)), mask)


@pytest.mark.parametrize("kind", LINEARS)
@pytest.mark.parametrize("value", [1.0, -1.0, float("inf"), float("nan")])
def test_holding_writes_plain_zeros_over_anything(kind, value):
    linear, mask = LINEARS[kind](), torch.rand(5, 7) < 0.5
    set_mask(linear, mask)
    nn.init.constant_(linear.weight, value)
    hold(linear)
    masked = oriented(linear)[~mask]
    assert (masked == 0).all()
    assert not masked.signbit().any()
    assert not (oriented(linear)[mask] == 0).any()


def test_forgetting_a_mask_leaves_the_zeros():
    linear, mask = nn.Linear(7, 5), torch.rand(5, 7) < 0.5
    set_mask(linear, mask)
    set_mask(linear, None)
    assert get_mask(linear) is None
    assert not masked_linears(linear)
    assert (linear.weight[~mask] == 0).all()


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"\(7, 5\).*\(5, 7\)"):
        set_mask(nn.Linear(7, 5), torch.ones(7, 5, dtype=torch.bool))
