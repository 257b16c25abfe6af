"""The N largest scores, ties broken by position."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dsee import support

SETTINGS = settings(deadline=None, database=None, derandomize=True, max_examples=60)


def oracle(score: np.ndarray, n: int) -> list[int]:
    """A stable sort by descending score keeps the lower position first among equals."""
    return sorted(np.argsort(-score.reshape(-1), kind="stable")[:n].tolist())


@SETTINGS
@given(
    score=arrays(np.float32, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.sampled_from([0, 1, 2, 2.5])),
    share=st.floats(0, 1),
)
def test_top_n_equals_a_stable_sort_even_when_scores_tie(score, share):
    n = round(share * score.size)
    assert support.top_n(torch.from_numpy(score), n).tolist() == oracle(score, n)


@pytest.mark.parametrize("n", [0, 1, 37, 200])
def test_magnitude_is_the_largest_absolute_weights(n):
    weight = torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    expected = oracle(weight.abs().numpy(), n)
    assert support.choose("magnitude", weight, n, rank=8, seed=3).tolist() == expected


def test_magnitude_looks_at_the_size_and_not_at_the_sign():
    weight = torch.tensor([[0.1, -5.0], [2.0, -0.2]])
    assert support.choose("magnitude", weight, 2, rank=0, seed=0).tolist() == [1, 2]


def test_minus_zero_ties_with_zero():
    assert support.top_n(torch.tensor([-0.0, 0.0, -1.0]), 1).tolist() == [0]
