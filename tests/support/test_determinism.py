"""Same seed, same support: whatever the threads and the state of other generators."""

import pytest
import torch

from dsee import support
from support.given import choose

RULES = sorted(support.rules())


def weight(rows=48, columns=64, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rule", RULES)
def test_the_same_seed_gives_the_same_support(rule):
    first, second = (choose(rule, weight(), 50, rank=4, seed=7) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("rule", RULES)
def test_the_global_generator_is_neither_read_nor_moved(rule):
    torch.manual_seed(1)
    first, state = choose(rule, weight(), 50, rank=4, seed=7), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, choose(rule, weight(), 50, rank=4, seed=7))


@pytest.mark.parametrize(
    ("rule", "shape"), [*((rule, (48, 64)) for rule in RULES), ("grebsmo", (192, 160)), ("residual", (192, 160))]
)
def test_the_number_of_threads_does_not_matter(rule, shape):
    w, threads = weight(*shape), torch.get_num_threads()
    try:
        chosen = []
        for count in (1, 2):
            torch.set_num_threads(count)
            chosen.append(choose(rule, w, 64, rank=8, seed=0))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*chosen)


def test_another_seed_gives_another_draw():
    first, second = (choose("random", weight(), 50, rank=4, seed=seed) for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"random"}))
def test_the_support_of_a_searching_rule_does_not_depend_on_the_seed(rule):
    first, second = (choose(rule, weight(), 50, rank=4, seed=seed) for seed in (0, 1))
    assert torch.equal(first, second)
