"""Every rule returns exactly N distinct ascending positions, whatever the matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsee import support
from support.given import choose

SETTINGS = settings(deadline=None, database=None, derandomize=True, max_examples=25)
RULES = sorted(support.rules())


def matrix(kind: str, rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "normal":
        return torch.randn(rows, columns, generator=generator)
    if kind == "few values":
        return torch.randint(-1, 2, (rows, columns), generator=generator).float()
    if kind == "one row":
        return torch.zeros(rows, columns).index_fill(0, torch.tensor([rows - 1]), 3.0)
    return torch.full((rows, columns), {"zeros": 0.0, "constant": 0.5, "negative": -2.0}[kind])


def assert_exactly(positions: torch.Tensor, n: int, numel: int) -> None:
    assert positions.dtype == torch.int64
    assert positions.shape == (n,)
    assert bool((positions.diff() > 0).all()), "positions ascend and none occurs twice"
    assert n == 0 or (int(positions[0]) >= 0 and int(positions[-1]) < numel)


@pytest.mark.parametrize("rule", RULES)
@SETTINGS
@given(
    kind=st.sampled_from(["normal", "few values", "one row", "zeros", "constant", "negative"]),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    share=st.floats(0, 1),
    rank=st.integers(0, 12),
    seed=st.integers(0, 2**31),
)
def test_every_rule_returns_exactly_n_distinct_ascending_positions(rule, kind, rows, columns, share, rank, seed):
    n = round(share * rows * columns)
    positions = choose(rule, matrix(kind, rows, columns, seed), n, rank=rank, seed=seed)
    assert_exactly(positions, n, rows * columns)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [0, 1, 23, 24])
def test_the_edges_of_n_hold(rule, n):
    positions = choose(rule, matrix("normal", 4, 6, 0), n, rank=2, seed=0)
    assert_exactly(positions, n, 24)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (30, 7), (7, 30)])
def test_narrow_and_wide_matrices_are_served(rule, shape):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    assert_exactly(choose(rule, weight, 11, rank=8, seed=0), 11, weight.numel())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_weight_dtype_is_served_and_left_alone(rule, dtype):
    weight = matrix("normal", 8, 10, 1).to(dtype)
    before = weight.clone()
    assert_exactly(choose(rule, weight, 13, rank=3, seed=0), 13, 80)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("rule", RULES)
def test_a_transposed_view_gives_the_same_support_as_its_copy(rule):
    view = matrix("normal", 12, 8, 2).T
    assert not view.is_contiguous()
    expected = choose(rule, view.contiguous(), 9, rank=2, seed=0)
    assert torch.equal(choose(rule, view, 9, rank=2, seed=0), expected)
