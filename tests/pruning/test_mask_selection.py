"""The lowest of many scores, found by counting: held against sorting."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsee.pruning.selection import GONE, PROTECTED, Units, keys_of, lowest

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
#: Few distinct values, so that ties are the rule.
TIED = st.sampled_from([-1.5, -0.0, 0.0, 2.0**-99, 2.0, 2.0 + 2.0**-22])


def as_list(chosen):
    return torch.cat(chosen).tolist()


@settings(deadline=None)
@given(st.lists(FLOATS | TIED, min_size=1, max_size=40))
def test_keys_order_as_scores_do(values):
    scores = torch.tensor(values)
    keys = keys_of(scores).long()
    smaller = scores[:, None] < scores
    assert torch.equal(keys[:, None] < keys, smaller)
    assert int(keys.min()) > GONE
    assert int(keys.max()) < PROTECTED


@settings(deadline=None)
@given(st.lists(st.lists(FLOATS | TIED, min_size=1, max_size=30), min_size=1, max_size=4), st.data())
def test_single_units_go_in_the_order_of_a_stable_sort(lists, data):
    total = sum(len(values) for values in lists)
    count = data.draw(st.integers(0, total))
    flat = torch.tensor([v for values in lists for v in values])
    expected = torch.zeros(total, dtype=torch.bool)
    expected[torch.argsort(flat, stable=True)[:count]] = True
    pool = [Units(keys_of(torch.tensor(values))) for values in lists]
    assert as_list(lowest(pool, count)) == expected.tolist()


@settings(deadline=None)
@given(st.lists(st.tuples(FLOATS | TIED, st.integers(1, 6)), min_size=1, max_size=40), st.data())
def test_units_of_several_sizes_come_within_half_of_one(units, data):
    scores, sizes = (torch.tensor(column) for column in zip(*units, strict=True))
    sizes = sizes.to(torch.int32)
    count = data.draw(st.integers(0, int(sizes.sum())))
    pool = Units(keys_of(scores.float()), sizes)
    (chosen,) = lowest([pool], count)
    assert abs(pool.weights_of(chosen) - count) <= int(sizes.max()) / 2
    if chosen.any() and not chosen.all():
        assert scores[chosen].max() <= scores[~chosen].min()


@pytest.mark.parametrize("count", [0, 3, 4, 5, 6, 7, 8, 12])
def test_equal_units_of_four_are_rounded_to_the_nearest(count):
    pool = Units(keys_of(torch.tensor([3.0, 1.0, 2.0])), None, 4)
    goes = lowest([pool], count)[0]
    assert pool.weights_of(goes) == 4 * ((count + 2) // 4)


def test_what_is_gone_goes_first_and_what_is_protected_never():
    keys = keys_of(torch.tensor([5.0, -9.0, 1.0, 0.0]))
    keys[0], keys[1] = GONE, PROTECTED
    assert lowest([Units(keys)], 2)[0].tolist() == [True, False, False, True]
    assert lowest([Units(keys)], 4)[0].tolist() == [True, False, True, True]


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**20), st.integers(0, 3))
def test_pools_larger_than_a_chunk(count, seed):
    import dsee.pruning.selection as selection

    kept, selection._CHUNK = selection._CHUNK, 2**14
    try:
        scores = torch.randn(2**20, generator=torch.Generator().manual_seed(seed)).round(decimals=2)
        (goes,) = lowest([Units(keys_of(scores))], count)
    finally:
        selection._CHUNK = kept
    assert int(goes.sum()) == count
    assert count in (0, 2**20) or scores[goes].max() <= scores[~goes].min()
