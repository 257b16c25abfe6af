"""Whose threads compute changes nothing, and a child of fork() computes whatever its parent used."""

import os
import signal
import sys

import pytest
import torch
from kernel_oracle import needs_kernels, sparse_weight

from dsee.kernels import library, pack, sparse_linear
from dsee.kernels.library import torch_threads_address
from dsee.modes import torch_threads

pytestmark = needs_kernels
TEAMS = ["torch's", "own"]


@pytest.fixture(params=TEAMS)
def team(request):
    """Compute on torch's threads, where there are some to share, or on the kernels' own."""
    shared = torch_threads_address()
    if request.param == "torch's" and shared is None:
        pytest.skip("torch's threads are not libgomp's here")
    library().share_threads(shared if request.param == "torch's" else None)
    yield request.param
    library().share_threads(shared)


def product():
    """Small enough that torch itself goes to no threads for it: libgomp cannot, in a child of fork()."""
    generator = torch.Generator().manual_seed(0)
    matrix = pack(sparse_weight(128, 96, 0.5, "blocks", generator), "blocks")
    return matrix, torch.randn(200, 96, generator=generator)


def test_torch_on_linux_has_threads_to_share():
    if not sys.platform.startswith("linux"):
        pytest.skip("libgomp comes with torch on Linux")
    assert torch_threads_address()


def test_every_team_gives_the_same_bits(team):
    matrix, x = product()
    with torch_threads(1):
        alone = sparse_linear(x, matrix)
    for threads in (2, 3, 8):
        with torch_threads(threads):
            # again and again: threads come late, or find nothing left to do
            assert all(torch.equal(sparse_linear(x, matrix), alone) for _ in range(50))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # which is what is tested
def test_a_child_of_fork_computes(team):
    matrix, x = product()
    with torch_threads(2):
        expected = sparse_linear(x, matrix)
        child = os.fork()
        if not child:
            # a hang is killed, and nothing of pytest may run on here
            signal.alarm(20)
            os._exit(0 if torch.equal(sparse_linear(x, matrix), expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert torch.equal(sparse_linear(x, matrix), expected)
