"""The published loop: its rank limit, its threshold, and exactly N positions where it would have returned all."""

import importlib

import pytest
import torch

from dsee import support

# the package's attribute of that name is the function
module = importlib.import_module("dsee.support.grebsmo_reference")


def spied_ranks(monkeypatch, weight):
    """Ranks of U V in the order in which the loop goes through them."""
    ranks, real = [], torch.linalg.qr

    def qr(a):
        if a.shape != weight.shape:
            ranks.append(a.shape[1])
        return real(a)

    monkeypatch.setattr(torch.linalg, "qr", qr)
    support.choose("grebsmo-reference", weight, 5, rank=8, seed=0)
    return ranks


@pytest.mark.parametrize(("rows", "columns"), [(24, 30), (30, 24), (48, 40)])
def test_the_rank_ends_at_the_same_share_of_the_full_rank_as_in_bert(rows, columns, monkeypatch):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    ranks = spied_ranks(monkeypatch, weight)
    assert ranks[-1] == int(496 / 768 * min(rows, columns))
    assert max(ranks) == ranks[-1] < min(rows, columns)


def test_the_rank_grows_by_five_a_round_from_one(monkeypatch):
    weight = torch.randn(48, 40, generator=torch.Generator().manual_seed(0))
    ranks = spied_ranks(monkeypatch, weight)
    assert ranks[: 5 * module.PASSES : module.PASSES] == [1, 6, 11, 16, 21]
    assert len(ranks) == module.ROUNDS * module.PASSES


def test_there_are_exactly_n_positions_even_when_fewer_exceed_the_threshold():
    # everything lies below the published threshold of 0.01, so the published mask would be all ones
    weight = 1e-3 * torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    positions = support.choose("grebsmo-reference", weight, 7, rank=8, seed=0)
    assert positions.shape == (7,)
    assert positions.unique().numel() == 7


def test_the_rank_of_the_update_does_not_matter():
    weight = torch.randn(30, 30, generator=torch.Generator().manual_seed(0))
    first, second = (support.choose("grebsmo-reference", weight, 20, rank=rank, seed=0) for rank in (2, 16))
    assert torch.equal(first, second)


def test_large_entries_on_a_low_rank_matrix_are_found():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 2, generator=generator) @ torch.randn(2, 40, generator=generator)
    positions = torch.randperm(1600, generator=generator)[:10].sort().values
    weight.view(-1)[positions] += 30.0
    found = support.choose("grebsmo-reference", weight, 10, rank=8, seed=0)
    assert torch.isin(found, positions).sum() >= 5
