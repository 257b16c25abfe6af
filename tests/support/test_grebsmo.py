"""GreBsmo finds the sparse part that hides in a low-rank matrix, and beats magnitude at the paper's objective."""

import pytest
import torch

from dsee import support


def planted(rows=60, columns=50, rank=4, n=40, spike=3.0, seed=0):
    """A low-rank matrix whose entries are as large as the planted spikes, so that magnitude cannot see them."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)
    positions = torch.randperm(rows * columns, generator=generator)[:n].sort().values
    sparse = torch.zeros(rows * columns)
    sparse[positions] = spike * torch.randn(n, generator=generator).sign()
    return low + sparse.view(rows, columns), positions


def objective(weight, positions, rank):
    """0.5 ||W - UV - S||^2 with the support fixed: hard-impute the free entries until the low-rank part settles."""
    free = torch.zeros(weight.numel(), dtype=torch.bool)
    free[positions] = True
    free = free.view_as(weight)
    low = torch.zeros_like(weight)
    for _ in range(200):
        u, s, v = torch.linalg.svd(torch.where(free, low, weight), full_matrices=False)
        low = (u[:, :rank] * s[:rank]) @ v[:rank]
    return float(0.5 * (weight - low)[~free].square().sum())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("n", "spike"), [(40, 3.0), (300, 4.0)], ids=["few", "a tenth of W"])
def test_a_planted_sparse_matrix_is_found_exactly(n, spike, seed):
    # with a tenth of W, the low-rank part is only right if S is taken off W before it is fitted
    weight, positions = planted(n=n, spike=spike, seed=seed)
    assert torch.equal(support.choose("grebsmo", weight, positions.numel(), rank=4, seed=seed), positions)


@pytest.mark.parametrize("seed", range(3))
def test_magnitude_does_not_find_the_planted_matrix(seed):
    # or the test above would show nothing
    weight, positions = planted(seed=seed)
    found = support.choose("magnitude", weight, positions.numel(), rank=4, seed=seed)
    assert torch.isin(found, positions).float().mean() < 0.5


@pytest.mark.parametrize("seed", range(3))
def test_the_objective_is_lower_than_with_the_magnitude_support(seed):
    generator = torch.Generator().manual_seed(seed)
    weight = planted(seed=seed)[0] + 0.3 * torch.randn(60, 50, generator=generator)
    by_rule = {
        rule: objective(weight, support.choose(rule, weight, 40, rank=4, seed=seed), 4)
        for rule in ("grebsmo", "magnitude")
    }
    assert by_rule["grebsmo"] < by_rule["magnitude"]


def test_without_a_low_rank_part_the_support_is_that_of_magnitude():
    weight, _ = planted()
    expected = support.choose("magnitude", weight, 40, rank=0, seed=0)
    assert torch.equal(support.choose("grebsmo", weight, 40, rank=0, seed=0), expected)


@pytest.mark.parametrize("rank", [1, 3, 4, 7, 50, 80])
def test_the_rank_never_exceeds_what_the_update_has(rank, monkeypatch):
    widths, real = [], torch.linalg.qr

    def qr(a):
        widths.append(a.shape[1])
        return real(a)

    monkeypatch.setattr(torch.linalg, "qr", qr)
    weight, _ = planted()
    support.choose("grebsmo", weight, 40, rank=rank, seed=0)
    assert set(widths) == {min(rank, 50)}


@pytest.mark.parametrize("shape", [(60, 50), (50, 60)])
def test_the_support_is_a_fixed_point_of_the_alternation(shape):
    # oracle: the best low-rank part beside an S on the chosen support leaves its largest residuals there
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=generator) @ torch.diag(0.9 ** torch.arange(shape[1]))
    weight.view(-1)[torch.randperm(weight.numel(), generator=generator)[:60]] += 2.0
    positions = support.choose("grebsmo", weight, 60, rank=5, seed=0)
    free = torch.zeros(weight.numel(), dtype=torch.bool)
    free[positions] = True
    free = free.view_as(weight)
    low = torch.zeros_like(weight)
    for _ in range(400):
        u, s, v = torch.linalg.svd(torch.where(free, low, weight), full_matrices=False)
        low = (u[:, :5] * s[:5]) @ v[:5]
    kept = torch.isin(support.top_n((weight - low).abs(), 60), positions).float().mean()
    assert kept >= 0.9
