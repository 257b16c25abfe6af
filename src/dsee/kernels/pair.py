"""Two layers in a row in one call: a feed-forward block without layout, and without memory, between its halves.

The layers are two modules, and what calls them is code of the model's own. So the first one, the leader, hands on its
input as it is, and the second one, the follower, knows it by its width and computes both. A leader that is asked for
gradients, trained, compiled or watched by a hook computes by itself, and the follower then does what it always does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dsee.kernels.hooks import watched
from dsee.kernels.library import ACTIVATIONS, library
from dsee.kernels.matrix import SparseMatrix

if TYPE_CHECKING:
    from torch import nn

    from dsee.kernels.linear import OnKernels


def join(leader: OnKernels, follower: OnKernels, watched: tuple[nn.Module, ...]) -> bool:
    """Let a follower compute its leader too, where the kernels can.

    Args:
        leader: the layer whose result, and nothing else, enters ``follower``.
        follower: the next layer.
        watched: modules that lie between the two.

    Returns:
        Whether they are joined now: both of one kind, without branches, and of a shape that tells them apart.
    """
    one, two = leader._dsee_sparse, follower._dsee_sparse
    first, second = leader.packed(), follower.packed()
    fits = (
        isinstance(first, SparseMatrix)
        and isinstance(second, SparseMatrix)
        and first.kind == second.kind
        and first.shape[0] == second.shape[1] != first.shape[1]
        and one.side is None
        and two.side is None
    )
    if fits and library() is not None:
        one.follower, two.leader, one.watched = follower, leader, watched
        return True
    return False


def part(leader: OnKernels) -> None:
    """Undo :func:`join`.

    Args:
        leader: the first of the two.
    """
    state = leader.__dict__.get("_dsee_sparse")
    if state is not None and state.follower is not None:
        other = state.follower.__dict__.get("_dsee_sparse")
        if other is not None:
            other.leader = None
        state.follower, state.watched = None, ()


def can_hand_on(leader: Any, x: torch.Tensor) -> bool:
    """Whether the follower may compute a leader now.

    Args:
        leader: a layer with a follower.
        x: its input.
    """
    from dsee.kernels.linear import kernels_can

    state, found, threads = leader._dsee_sparse, library(), torch.get_num_threads()
    if found is None or leader.training or torch.jit.is_tracing():  # type: ignore[attr-defined]  # not in __all__
        return False
    own, other = leader._parameters, state.follower._parameters
    if not kernels_can(x, own["weight"], own["bias"], other["weight"], other["bias"]):
        return False
    # only tokens are divided among threads here, so there have to be enough of them
    if threads > 1 and x.numel() // x.shape[-1] < 2 * threads * found.panels[state.kind]:
        return False
    return not any(map(watched, state.watched))


def both(leader: Any, follower: Any, x: torch.Tensor) -> torch.Tensor:
    """Return act2(act1(x W1' + b1) W2' + b2).

    Args:
        leader: the first layer.
        follower: the second.
        x: float32 (..., in) on the CPU, for which :func:`can_hand_on` held.

    Returns:
        float32 (..., out).
    """
    found: Any = library()
    x = x.contiguous()
    layers, kept = [], []
    for layer in (leader, follower):
        matrix, bias = layer.packed(), layer._parameters["bias"]
        bias = None if bias is None else bias.contiguous()
        kept.append(bias)
        place = None if bias is None else bias.data_ptr()
        layers.append((matrix.address, place, ACTIVATIONS[layer._dsee_sparse.activation]))
    rows = matrix.shape[0]
    y = torch.empty((*x.shape[:-1], rows))
    found.linears(*layers, x.data_ptr(), y.data_ptr(), y.numel() // rows, torch.get_num_threads())
    return y
