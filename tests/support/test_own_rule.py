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


def test_a_rule_may_return_a_score_for_each_weight():
    register(lambda weight, n, rank, generator: -weight)
    chosen = support.choose("own", torch.tensor([[3.0, 1.0], [2.0, 1.0]]), 2, rank=1, seed=0)
    assert chosen.tolist() == [1, 3]


def test_the_mask_applies_to_scores_without_the_rule_s_help():
    register(lambda weight, n, rank, generator: -weight)
    mask = torch.tensor([[True, False], [True, True]])
    chosen = support.choose("own", torch.tensor([[3.0, 1.0], [2.0, 1.0]]), 2, rank=1, seed=0, mask=mask)
    assert chosen.tolist() == [2, 3]


def test_a_rule_gets_mask_and_gradient_when_it_asks_for_them():
    seen = {}

    def own(weight, n, rank, generator, *, mask, gradient):
        seen.update(mask=mask, gradient=gradient)
        return gradient * weight.abs()

    register(own)
    assert support.needs_gradient("own")
    given = torch.arange(9.0).view(3, 3).T
    mask = torch.ones(3, 3, dtype=torch.bool)
    support.choose("own", torch.ones(3, 3), 4, rank=1, seed=0, gradient=given, mask=mask)
    assert torch.equal(seen["gradient"], given)
    assert torch.equal(seen["mask"], mask)


@pytest.mark.parametrize("result", [torch.ones(9), torch.full((3, 3), float("nan"))], ids=["shape", "NaN"])
def test_scores_of_another_shape_or_not_finite_are_refused(result):
    register(lambda weight, n, rank, generator: result)
    with pytest.raises(dsee.InputError, match="'own' returned scores"):
        support.choose("own", torch.ones(3, 3), 4, rank=1, seed=0)


def test_positions_that_the_mask_has_removed_are_refused():
    register(lambda weight, n, rank, generator: torch.arange(n))
    with pytest.raises(dsee.InputError, match="'own' chose weights that the mask has removed"):
        support.choose("own", torch.ones(3, 3), 2, rank=1, seed=0, mask=~torch.eye(3, dtype=torch.bool))
