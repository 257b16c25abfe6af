"""The rules by name. A rule of one's own is one decorated function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from dsee.errors import InputError, listed, nearest

#: A rule takes W (out, in) in fp32, the number of positions, the rank of the update and a seeded generator, and
#: returns that many distinct flat positions (row * in + column), ascending.
Rule = Callable[[torch.Tensor, int, int, torch.Generator], torch.Tensor]
RuleT = TypeVar("RuleT", bound=Rule)

_RULES: dict[str, Rule] = {}


def register_rule(name: str) -> Callable[[RuleT], RuleT]:
    """Make a function available as ``support=name``.

    Args:
        name: the name used in :class:`dsee.DseeConfig` and in recipes.
    """

    def add(rule: RuleT) -> RuleT:
        _RULES[name] = rule
        return rule

    return add


def rules() -> list[str]:
    """Return the names of all registered rules, sorted."""
    return sorted(_RULES)


def check_rule(name: str) -> str:
    """Return ``name`` if a rule of that name exists.

    Raises:
        InputError: if it does not.
    """
    if name not in _RULES:
        raise InputError(f"support={name!r} is not a support rule.{nearest(name, _RULES)} Known: {listed(rules())}.")
    return name


@contextmanager
def _one_thread() -> Iterator[None]:
    """Other threads round sums in another order, and an iteration can turn that into another choice."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def choose(rule: str, weight: torch.Tensor, n_sparse: int, *, rank: int, seed: int) -> torch.Tensor:
    """Choose the support of one matrix.

    Args:
        rule: name of a registered rule.
        weight: W, shape (out, in), any floating dtype; the choice is made in fp32 on the CPU, so that it does not
            depend on the device.
        n_sparse: N, the number of positions.
        rank: r of the update, which the decomposing rules use.
        seed: seeds the rule's generator.

    Returns:
        int64, shape (n_sparse,): distinct flat positions ``row * in + column``, ascending.

    Raises:
        InputError: unknown rule, N larger than the matrix, or a weight that is not finite.
    """
    check_rule(rule)
    if n_sparse > weight.numel():
        rows, columns = weight.shape
        raise InputError(
            f"n_sparse={n_sparse} is more than the {weight.numel()} weights of a {rows} x {columns} matrix. "
            "Lower n_sparse or set it for this matrix in n_sparse_pattern."
        )
    # a copy of its own, row by row: a rule may work in place, and Conv1D hands over a transposed view
    w = weight.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not torch.isfinite(w).all():
        raise InputError(
            "The base weight holds NaN or infinity, so no support can be chosen from it. Check the checkpoint."
        )
    with _one_thread():
        positions = _RULES[rule](w, n_sparse, rank, torch.Generator().manual_seed(seed))
    if positions.shape != (n_sparse,) or positions.unique().numel() != n_sparse:
        raise InputError(
            f"The support rule {rule!r} returned {positions.unique().numel()} distinct positions, not {n_sparse}. "
            "A rule has to return exactly as many as it is asked for."
        )
    if n_sparse and not 0 <= int(positions.min()) <= int(positions.max()) < weight.numel():
        raise InputError(
            f"The support rule {rule!r} returned positions from {int(positions.min())} to {int(positions.max())}, "
            f"but the matrix has positions 0 to {weight.numel() - 1}: row * in + column."
        )
    return positions.to(torch.int64).sort().values
