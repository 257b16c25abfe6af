"""score="random": the control, seeded and uniform."""

import pytest
import torch
from score_oracle import UNITS, score

from conftest import tiny_bert


@pytest.mark.parametrize("unit", UNITS)
def test_the_seed_decides(unit):
    model = tiny_bert()
    one, again, other = (torch.cat(score(model, "random", unit, seed=seed)) for seed in (4, 4, 5))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("unit", UNITS)
def test_every_layer_draws_its_own(unit):
    one, two, three = score(tiny_bert(), "random", unit)
    assert not torch.equal(one, two)
    assert not torch.equal(two, three)


def test_every_part_is_as_likely_to_go_as_any_other():
    model = tiny_bert(num_hidden_layers=1)
    lowest = torch.zeros(4)
    for seed in range(400):
        lowest[score(model, "random", "heads", seed=seed)[0].argmin()] += 1
    # binomial with p = 1/4: 100 expected, standard deviation 8.7; five of them are passed once in two million
    assert (lowest - 100).abs().max() < 44


def test_the_values_are_uniform():
    drawn = torch.cat([torch.cat(score(tiny_bert(), "random", "neurons", seed=seed)) for seed in range(20)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    # 2,400 draws: the mean lies within five standard errors of a half
    assert abs(float(drawn.mean()) - 0.5) < 5 * (1 / 12 / drawn.numel()) ** 0.5


def test_the_weights_do_not_matter():
    one, other = (torch.cat(score(tiny_bert(model_seed), "random", "neurons", seed=1)) for model_seed in (0, 1))
    assert torch.equal(one, other)
