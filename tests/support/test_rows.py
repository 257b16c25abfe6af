"""The rule `rows`: few rows, the ones that leave most over, and the largest entries inside them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsee import support

SETTINGS = settings(deadline=None, database=None, derandomize=True, max_examples=40)


def rows_of(positions, columns):
    return (positions // columns).unique().numel()


@SETTINGS
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    share=st.floats(0, 1),
    rank=st.integers(0, 24),
    seed=st.integers(0, 2**31),
)
def test_the_rows_are_as_few_as_the_entries_need_or_a_quarter_of_the_rank(shape, share, rank, seed):
    n = round(share * shape[0] * shape[1])
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    chosen = support.choose("rows", weight, n, rank=rank, seed=0)
    assert chosen.numel() == n
    assert rows_of(chosen, shape[1]) <= max(-(-n // shape[1]), -(-rank // 4))


def test_the_row_that_the_low_rank_part_fits_worst_is_chosen_and_its_largest_entries_in_it():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 3, generator=generator) @ torch.randn(3, 40, generator=generator)
    places = torch.tensor([2, 11, 17, 30])
    weight[13, places] += torch.tensor([5.0, -4.0, 6.0, -5.0])
    chosen = support.choose("rows", weight, 4, rank=3, seed=0)
    assert chosen.tolist() == (13 * 40 + places).tolist()


@pytest.mark.parametrize("rank", [4, 8, 16])
def test_an_exported_lora_needs_at_most_a_quarter_more_rank(rank):
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    chosen = support.choose("rows", weight, 64, rank=rank, seed=0)
    sparse = torch.zeros(64 * 64).index_fill(0, chosen, 1.0).view(64, 64)
    assert int(torch.linalg.matrix_rank(sparse)) <= max(1, rank // 4)
    spread = support.choose("residual", weight, 64, rank=rank, seed=0)
    assert rows_of(spread, 64) > 20, "or the rule would gain nothing"


def test_rows_are_added_where_the_mask_leaves_too_little_in_the_best():
    weight = torch.randn(10, 12, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(10, 12, dtype=torch.bool)
    mask[:, :3] = True
    chosen = support.choose("rows", weight, 13, rank=2, seed=0, mask=mask)
    assert rows_of(chosen, 12) == 5
    assert bool(mask.reshape(-1)[chosen].all())
