"""Positions by hand: flat or as pairs, and every way they can be wrong."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dsee
from dsee import support

SETTINGS = settings(deadline=None, database=None, derandomize=True, max_examples=40)


@SETTINGS
@given(
    flat=st.lists(st.integers(0, 34), unique=True),
    form=st.sampled_from(["list", "pairs", "tuples", "tensor", "int32", "tensor of pairs", "numpy"]),
)
def test_every_form_gives_the_same_ascending_positions(flat, form):
    pairs = [[f // 7, f % 7] for f in flat]
    given_as = {
        "list": flat,
        "pairs": pairs,
        "tuples": tuple(tuple(pair) for pair in pairs),
        "tensor": torch.tensor(flat, dtype=torch.int64),
        "int32": torch.tensor(flat, dtype=torch.int32),
        "tensor of pairs": torch.tensor(pairs, dtype=torch.int64).view(-1, 2) if flat else [],
        "numpy": np.array(flat, dtype=np.int64),
    }[form]
    found = support.flat_positions(given_as, (5, 7), "query")
    assert found.dtype == torch.int64
    assert found.tolist() == sorted(flat)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([0, 35], r"35 lies outside the 5 x 7 matrix: 0 to 34"),
        ([-1, 3], r"-1 lies outside"),
        ([(0, 0), (5, 0)], r"\[5, 0\] lies outside the 5 x 7 matrix: rows go from 0 to 4, columns to 6"),
        ([(0, 7)], r"\[0, 7\] lies outside"),
        ([(0, -1)], r"\[0, -1\] lies outside"),
        ([3, 1, 3], r"position 3 \(row 0, column 3\) is given twice"),
        ([(1, 0), (1, 0)], r"position 7 \(row 1, column 0\) is given twice"),
        ([0.5, 1.0], "whole numbers"),
        ([True, False], "whole numbers"),
        (["a"], "whole numbers"),
        ([(0, 1, 2)], "pairs"),
        ([(0, 1), (2,)], "pairs"),
        ([None], "whole numbers"),
        ("query", "whole numbers"),
        (3, "whole numbers"),
        (torch.zeros(2, 3, 4, dtype=torch.int64), r"a tensor of shape \(2, 3, 4\)"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_are_no_positions_is_refused_with_the_module_s_name(wrong, said):
    with pytest.raises(dsee.InputError, match=f"layer.0.query.*{said}"):
        support.flat_positions(wrong, (5, 7), "layer.0.query")


def test_a_pair_is_row_and_column_of_the_out_in_matrix():
    assert support.flat_positions([(4, 0)], (5, 7), "query").tolist() == [28]


def test_explicit_is_no_rule_to_choose_by():
    assert "explicit" not in support.rules()
    with pytest.raises(dsee.InputError, match="positions are given"):
        support.choose("explicit", torch.ones(3, 3), 2, rank=1, seed=0)
