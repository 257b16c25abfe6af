"""A rule of one's own is one decorated function."""

import pytest
import torch

import dsee
from conftest import adapted, logits, tiny_bert
from dsee import support
from dsee.support import _registry
from dsee.update.layer import update_layers


@pytest.fixture(autouse=True)
def _registry_as_before(monkeypatch):
    monkeypatch.setattr(_registry, "_RULES", dict(_registry._RULES))


def register(rule):
    return support.register_rule("own")(rule)


def test_an_own_rule_works_through_the_config():
    seen = []

    @support.register_rule("own")
    def own(weight, n, rank, generator):
        seen.append((weight.dtype, tuple(weight.shape), n, rank, isinstance(generator, torch.Generator)))
        return torch.arange(n) * weight.shape[1]

    model = adapted(tiny_bert(), support="own", n_sparse=5, r=3)
    assert "own" in support.rules()
    assert seen == [(torch.float32, (32, 32), 5, 3, True)] * 6
    for _, layer in update_layers(model):
        assert layer.dsee_S["default"].indices.tolist() == [0, 32, 64, 96, 128]
    assert logits(model).isfinite().all()


def test_the_decorator_returns_the_function_itself():
    def rule(weight, n, rank, generator):
        return torch.arange(n)

    assert register(rule) is rule


def test_positions_in_any_order_and_integer_type_are_sorted():
    register(lambda weight, n, rank, generator: torch.arange(n, dtype=torch.int32).flip(0))
    chosen = support.choose("own", torch.ones(3, 3), 4, rank=1, seed=0)
    assert (chosen.tolist(), chosen.dtype) == ([0, 1, 2, 3], torch.int64)


@pytest.mark.parametrize(
    "rule",
    [
        lambda weight, n, rank, generator: torch.arange(n - 1),
        lambda weight, n, rank, generator: torch.arange(n + 1),
        lambda weight, n, rank, generator: torch.zeros(n, dtype=torch.int64),
    ],
    ids=["too few", "too many", "one position n times"],
)
def test_a_rule_that_returns_another_number_is_refused_by_name(rule):
    register(rule)
    with pytest.raises(dsee.InputError, match=r"'own' returned [0-9]+ distinct positions, not 4"):
        support.choose("own", torch.ones(3, 3), 4, rank=1, seed=0)


@pytest.mark.parametrize("first", [-1, 9], ids=["negative", "past the end"])
def test_a_rule_that_leaves_the_matrix_is_refused_by_name(first):
    register(lambda weight, n, rank, generator: torch.tensor([first, 2, 3, 4]))
    with pytest.raises(dsee.InputError, match="own"):
        support.choose("own", torch.ones(3, 3), 4, rank=1, seed=0)


def test_a_rule_that_works_in_place_does_not_change_the_model():
    register(lambda weight, n, rank, generator: support.top_n(weight.abs_(), n))
    weight = -torch.ones(3, 3)
    support.choose("own", weight, 4, rank=1, seed=0)
    assert torch.equal(weight, -torch.ones(3, 3))
