"""Every rule keeps to the mask when it is given one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dsee
from dsee import support
from support.given import choose

SETTINGS = settings(deadline=None, database=None, derandomize=True, max_examples=25)
RULES = sorted(support.rules())


@pytest.mark.parametrize("rule", RULES)
@SETTINGS
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    density=st.floats(0, 1),
    share=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    kind=st.sampled_from(["normal", "ties", "zeros"]),
    rank=st.integers(0, 9),
    seed=st.integers(0, 2**31),
)
def test_exactly_n_kept_positions_are_chosen(rule, shape, density, share, kind, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    weight = {"normal": weight, "ties": weight.sign(), "zeros": torch.zeros(shape)}[kind]
    mask = torch.rand(shape, generator=generator) < density
    n = round(share * int(mask.sum()))
    before = mask.clone()
    chosen = choose(rule, weight, n, rank=rank, seed=seed, mask=mask)
    assert chosen.shape == (n,)
    assert bool((chosen.diff() > 0).all())
    assert bool(mask.reshape(-1)[chosen].all())
    assert torch.equal(mask, before)


@pytest.mark.parametrize("rule", RULES)
def test_a_mask_that_keeps_everything_changes_nothing(rule):
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(20, 30, dtype=torch.bool)
    assert torch.equal(choose(rule, weight, 25, mask=mask), choose(rule, weight, 25))


@pytest.mark.parametrize("rule", RULES)
def test_a_mask_that_is_a_transposed_view_means_what_it_shows(rule):
    weight = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    mask = (torch.rand(12, 8, generator=torch.Generator().manual_seed(1)) < 0.5).T
    assert torch.equal(choose(rule, weight, 9, mask=mask), choose(rule, weight, 9, mask=mask.contiguous()))


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"random"}))
def test_what_the_mask_removes_would_have_been_chosen(rule):
    # or the tests above would show nothing
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    free = choose(rule, weight, 25)
    mask = torch.ones(600, dtype=torch.bool)
    mask[free] = False
    assert not torch.isin(choose(rule, weight, 25, mask=mask.view(20, 30)), free).any()


@pytest.mark.parametrize("rule", RULES)
def test_a_mask_that_keeps_fewer_than_n_is_refused_with_the_numbers(rule):
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[1, :3] = True
    with pytest.raises(dsee.InputError, match=r"n_sparse=4 is more than the 3 weights that the mask keeps.*4 x 5"):
        choose(rule, torch.ones(4, 5), 4, mask=mask)


@pytest.mark.parametrize("mask", [torch.ones(5, 4, dtype=torch.bool), torch.ones(4, 5)], ids=["shape", "dtype"])
def test_a_mask_of_another_kind_is_refused(mask):
    with pytest.raises(dsee.InputError, match="boolean"):
        choose("magnitude", torch.ones(4, 5), 2, mask=mask)
