"""Feed-forward blocks whose two linears run in one call."""

from __future__ import annotations

from torch import nn

from dsee.architectures._view import LayerView, submodule
from dsee.kernels.linear import OnKernels
from dsee.kernels.pair import join, part
from dsee.runtime.activations import mapped_layers


def join_pairs(model: nn.Module) -> list[OnKernels]:
    """Join both halves of each feed-forward block that runs on the kernels, activation and all, in mapped families.

    Args:
        model: a model whose layers have taken over their activations.

    Returns:
        The first halves, for :func:`part_pairs`.
    """
    found = []
    for view in mapped_layers(model):
        if view.names("neurons") != ("ffn_in",):
            # a gate multiplies between the two
            continue
        leader, follower = view.part("ffn_in"), view.part("ffn_out")
        on_kernels = isinstance(leader, OnKernels) and isinstance(follower, OnKernels)
        if on_kernels and leader._dsee_sparse.activation and join(leader, follower, _between(view)):
            found.append(leader)
    return found


def _between(view: LayerView) -> tuple[nn.Module, ...]:
    """The linears, what holds one of them and not the other, and the activation."""
    own = view.architecture
    paths = [path.split("|")[0].split(".") for path in (own.ffn_in, own.ffn_out)]
    shared = 0
    while shared < min(map(len, paths)) - 1 and paths[0][shared] == paths[1][shared]:
        shared += 1
    holders = [".".join(path[:depth]) for path in paths for depth in range(shared + 1, len(path))]
    names = [*holders, own.activation]
    found = [view.part("ffn_in"), view.part("ffn_out")]
    for name in names:
        try:
            found.append(submodule(view.module, name))
        except (AttributeError, IndexError):
            continue
    return tuple(module for module in found if isinstance(module, nn.Module))


def part_pairs(leaders: list[OnKernels]) -> None:
    """Undo :func:`join_pairs`.

    Args:
        leaders: what it returned.
    """
    for leader in leaders:
        part(leader)
