"""Two linears in one call give what one after the other gives, to the bit."""

import copy
import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from kernel_oracle import PATHS, needs_kernels
from torch import nn
from transformers.pytorch_utils import Conv1D

from dsee.kernels import from_kernels, library, to_kernels
from dsee.kernels.library import ACTIVATIONS
from dsee.kernels.pair import join, part

pytestmark = needs_kernels


def pair(inner=10, wide=7, out=6, *, kind="blocks", activation="gelu", bias=True, layer=nn.Linear, seed=0):
    """A leader and its follower, on the kernels and half zero."""
    torch.manual_seed(seed)
    if layer is Conv1D:
        leader, follower = Conv1D(inner, wide), Conv1D(out, inner)
    else:
        leader, follower = nn.Linear(wide, inner, bias=bias), nn.Linear(inner, out, bias=bias)
    for each, act in ((leader, activation), (follower, None)):
        each.eval().requires_grad_(False)
        nn.init.normal_(each.weight).mul_(torch.rand_like(each.weight) > 0.5)
        to_kernels(each, kind, act)
    return leader, follower


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 600), st.integers(1, 300), st.integers(1, 40)),
    tokens=st.integers(0, 150),
    kind=st.sampled_from(["blocks", "weights"]),
    activation=st.sampled_from(list(ACTIVATIONS)),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_to_the_bit(path, sizes, tokens, kind, activation, bias, seed):
    inner, wide, out = sizes
    leader, follower = pair(inner, wide, out, kind=kind, activation=activation, bias=bias, seed=seed)
    x = torch.randn(tokens, wide)
    library().use(path)
    try:
        expected = follower(leader(x))
        joined = join(leader, follower, (leader, follower))
        assert joined == (wide != inner)
        if joined:
            assert leader(x) is x
        assert torch.equal(follower(leader(x)), expected)
        part(leader)
        assert leader(x).shape == (tokens, inner)
        assert torch.equal(follower(leader(x)), expected)
    finally:
        library().use(PATHS[-1])


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads):
    leader, follower = pair(300, 40, 64)
    x = torch.randn(2, 200, 40)
    expected = follower(leader(x))
    assert join(leader, follower, ())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert leader(x) is x
        assert torch.equal(follower(leader(x)), expected)
        # a few tokens are divided by rows, which one call for both cannot
        assert (leader(x[0, :2]).shape == (2, 300)) == (threads > 1)
        # so few are summed in another order: 300 terms
        off = 300 * torch.finfo(torch.float32).eps * float(expected.abs().max())
        torch.testing.assert_close(follower(leader(x[0, :2])), expected[0, :2], rtol=0, atol=off)
    finally:
        torch.set_num_threads(before)


def test_conv1d_knows_its_input_side():
    leader, follower = pair(layer=Conv1D)
    x = torch.randn(2, 5, 7)
    expected = follower(leader(x))
    assert join(leader, follower, ())
    assert leader(x) is x
    assert torch.equal(follower(leader(x)), expected)


def test_gradients_training_and_hooks_take_both_apart():
    leader, follower = pair()
    x = torch.randn(3, 7)
    expected = follower(leader(x))
    assert join(leader, follower, (leader, follower))
    asking = x.clone().requires_grad_()
    follower(leader(asking)).sum().backward()
    assert asking.grad.abs().sum() > 0
    leader.train()
    assert leader(x).shape == (3, 10)
    leader.eval()
    seen = []
    handle = leader.register_forward_hook(lambda _, args, out: seen.append(out.shape))
    assert torch.equal(follower(leader(x)), expected)
    assert seen == [(3, 10)]
    handle.remove()
    assert leader(x) is x


def test_a_changed_weight_counts():
    leader, follower = pair()
    x = torch.randn(3, 7)
    join(leader, follower, ())
    before = follower(leader(x))
    leader.weight.mul_(2)
    assert not torch.equal(follower(leader(x)), before)
    together = follower(leader(x))
    part(leader)
    assert torch.equal(follower(leader(x)), together)


def test_copies_compute_alone():
    leader, follower = pair()
    block = nn.Sequential(leader, follower)
    x = torch.randn(3, 7)
    expected = block(x)
    join(leader, follower, ())
    for again in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert again[0](x).shape == (3, 10)
        assert torch.equal(again(x), expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda leader, follower: to_other_kind(follower),
        lambda leader, follower: to_int8(leader),
    ],
    ids=["kinds", "int8"],
)
def test_what_cannot_be_joined_is_not(change):
    leader, follower = pair()
    change(leader, follower)
    assert not join(leader, follower, ())
    assert leader(torch.randn(2, 7)).shape == (2, 10)


def to_other_kind(layer):
    from_kernels(layer)
    to_kernels(layer, "weights")


def to_int8(layer):
    from_kernels(layer)
    to_kernels(layer, "int8")
