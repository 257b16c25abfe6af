"""The rules by name. A rule of one's own is one decorated function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

import torch

from dsee.errors import InputError, listed, nearest
from dsee.modes import torch_threads
from dsee.support._top import top_n

#: A rule takes W (out, in) in fp32, the number of positions, the rank of the update and a seeded generator, and asks
#: for more by name: a keyword ``gradient`` or ``mask``. It returns a score for each weight, or the positions.
Rule = Callable[..., torch.Tensor]
RuleT = TypeVar("RuleT", bound=Rule)

#: Not a rule: the positions are given, in the configuration or to ``dsee.choose_support``.
EXPLICIT = "explicit"

_RULES: dict[str, Rule] = {}


def register_rule(name: str) -> Callable[[RuleT], RuleT]:
    """Make a function available as ``support=name``.

    The function gets ``(weight, n, rank, generator)``: W (out, in) in fp32 on the CPU, N, r, and a generator seeded
    for this matrix. It returns either a score for each weight, floating, shape (out, in), of which the N largest are
    taken, or N distinct flat positions ``row * in + column`` as integers. If it has a parameter

    - ``gradient``: it gets the sum over calibration batches of ``|dLoss/dW|``, shape (out, in), and the support waits
      for :func:`dsee.choose_support`;
    - ``mask``: it gets what may be chosen, bool (out, in), or None. A rule that returns scores does not need it.

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
    """Return ``name`` if a rule of that name exists or it says that positions are given.

    Raises:
        InputError: if it does not.
    """
    if name not in _RULES and name != EXPLICIT:
        known = [*rules(), EXPLICIT]
        raise InputError(f"support={name!r} is not a support rule.{nearest(name, known)} Known: {listed(known)}.")
    return name


def needs_gradient(name: str) -> bool:
    """Whether a rule looks at the gradients of a calibration set.

    Args:
        name: of a registered rule, or "explicit".
    """
    return name in _RULES and "gradient" in inspect.signature(_RULES[name]).parameters


@torch.no_grad()
def choose(
    rule: str,
    weight: torch.Tensor,
    n_sparse: int,
    *,
    rank: int,
    seed: int,
    gradient: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Choose the support of one matrix.

    Args:
        rule: name of a registered rule.
        weight: W, shape (out, in), any floating dtype; the choice is made in fp32 on the CPU, so that it does not
            depend on the device.
        n_sparse: N, the number of positions.
        rank: r of the update, which the decomposing rules use.
        seed: seeds the rule's generator.
        gradient: sum over batches of |dLoss/dW|, shape (out, in), for the rules that rank by it.
        mask: bool, shape (out, in): the support stays where it is True.

    Returns:
        int64, shape (n_sparse,): distinct flat positions ``row * in + column``, ascending.

    Raises:
        InputError: unknown rule, N larger than the matrix or than what the mask keeps, a weight or gradient that is
            not finite or missing, or a rule that does not do what it should.
    """
    _check_size(check_rule(rule), weight, n_sparse, mask)
    # copies of their own, row by row: a rule may work in place, and Conv1D hands over a transposed view
    w = _prepared(weight, "base weight", "Check the checkpoint.")
    more: dict[str, torch.Tensor | None] = {}
    wanted = inspect.signature(_RULES[rule]).parameters
    if "gradient" in wanted:
        if gradient is None:
            raise InputError(f"The rule {rule!r} ranks by gradients: call dsee.choose_support(model, calibration=...).")
        more["gradient"] = _prepared(gradient, "gradient", "Check the loss of the calibration batches.")
    mask = None if mask is None else mask.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if "mask" in wanted:
        more["mask"] = None if mask is None else mask.clone()
    # other threads round sums in another order, and an iteration can turn that into another choice
    with torch_threads(1):
        found = _RULES[rule](w, n_sparse, rank, torch.Generator().manual_seed(seed), **more)
        if found.is_floating_point():
            found = _best(rule, found, weight, n_sparse, mask)
    return _checked(rule, found, weight, n_sparse, mask)


def _check_size(rule: str, weight: torch.Tensor, n_sparse: int, mask: torch.Tensor | None) -> None:
    rows, columns = weight.shape
    if rule == EXPLICIT:
        raise InputError("support='explicit' means that the positions are given, so none can be chosen.")
    if n_sparse > weight.numel():
        raise InputError(
            f"n_sparse={n_sparse} is more than the {weight.numel()} weights of a {rows} x {columns} matrix. "
            "Lower n_sparse or set it for this matrix in n_sparse_pattern."
        )
    if mask is None:
        return
    if mask.shape != weight.shape or mask.dtype != torch.bool:
        raise InputError(f"The mask of a {rows} x {columns} matrix has to be boolean and of that shape.")
    kept = int(mask.sum())
    if kept < n_sparse:
        raise InputError(
            f"n_sparse={n_sparse} is more than the {kept} weights that the mask keeps of a {rows} x {columns} matrix. "
            "Lower n_sparse, set it for this matrix in n_sparse_pattern, or set within_mask=False."
        )


def _prepared(tensor: torch.Tensor, what: str, remedy: str) -> torch.Tensor:
    copy = tensor.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not torch.isfinite(copy).all():
        raise InputError(f"The {what} holds NaN or infinity, so no support can be chosen from it. {remedy}")
    return copy


def _best(rule: str, score: torch.Tensor, weight: torch.Tensor, n: int, mask: torch.Tensor | None) -> torch.Tensor:
    if score.shape != weight.shape or not torch.isfinite(score).all():
        raise InputError(
            f"The support rule {rule!r} returned scores of shape {tuple(score.shape)} for a matrix of shape "
            f"{tuple(weight.shape)}, or some that are not finite. It has to return one finite score for each weight, "
            "or positions as integers."
        )
    return top_n(score, n, mask)


def _checked(rule: str, found: torch.Tensor, weight: torch.Tensor, n: int, mask: torch.Tensor | None) -> torch.Tensor:
    if found.shape != (n,) or found.unique().numel() != n:
        raise InputError(
            f"The support rule {rule!r} returned {found.unique().numel()} distinct positions, not {n}. "
            "A rule has to return exactly as many as it is asked for."
        )
    positions = found.to("cpu", torch.int64).sort().values
    if n and not 0 <= int(positions[0]) <= int(positions[-1]) < weight.numel():
        raise InputError(
            f"The support rule {rule!r} returned positions from {int(positions[0])} to {int(positions[-1])}, "
            f"but the matrix has positions 0 to {weight.numel() - 1}: row * in + column."
        )
    if mask is not None and not mask.reshape(-1)[positions].all():
        raise InputError(
            f"The support rule {rule!r} chose weights that the mask has removed. Give it a parameter `mask` and keep "
            "to it, or let it return a score for each weight."
        )
    return positions
