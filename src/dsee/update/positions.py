"""Where the sparse part of one layer goes: its sizes, its support by rule or by hand, or a place kept for one."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from peft.utils.other import get_pattern_key

from dsee import support
from dsee.errors import InputError, listed, nearest
from dsee.masks import get_mask
from dsee.update.bases import linear_shape
from dsee.update.config import DseeConfig
from dsee.update.fused import PARTS
from dsee.update.sparse_delta import SparseDelta

if TYPE_CHECKING:
    from dsee.update.layer import DseeLayer

#: Which thirds of a fused layer's outputs the update goes on; None for a layer that is one matrix.
Parts = tuple[int, ...] | None


def sizes_of(config: DseeConfig, key: str, parts: Parts) -> list[int]:
    """Return N of each part of a layer; a layer that is not fused is one part.

    Args:
        config: the update's configuration.
        key: the layer's path in the base model.
        parts: of a fused layer.

    Raises:
        InputError: ``n_sparse_pattern`` has another number of sizes.
    """
    blocks = len(parts or [0])
    pattern = config.n_sparse_pattern
    # the layer's own name first: pruning writes actual sizes beside the user's wider patterns
    n_sparse = pattern.get(key if key in pattern else get_pattern_key(pattern, key), config.n_sparse)
    sizes = n_sparse if isinstance(n_sparse, list) else [n_sparse] * blocks
    if len(sizes) != blocks:
        raise InputError(f"n_sparse_pattern gives {len(sizes)} sizes for {key}, which takes {blocks}.")
    return sizes


def new_sparse(layer: DseeLayer, config: DseeConfig, rank: int, key: str, parts: Parts) -> SparseDelta | None:
    """Make a layer's S2, all zero, with its support chosen, or to be loaded or chosen later.

    Args:
        layer: the layer.
        config: the update's configuration.
        rank: r on this layer.
        key: the layer's path in the base model.
        parts: of a fused layer.

    Returns:
        S2, or None where N is 0.

    Raises:
        InputError: the configuration's positions or rule do not fit the layer.
    """
    shape = linear_shape(layer.get_base_layer())
    if config.positions and not config.support_stored:
        flat = support.flat_positions(config.positions.get(get_pattern_key(config.positions, key), []), shape, key)
        # what the loaders read: where nothing is given, there is no S2
        config.n_sparse_pattern[key] = size_of(flat, shape, key, parts)
        return SparseDelta(flat, *shape) if flat.numel() else None
    sizes = sizes_of(config, key, parts)
    if not any(sizes):
        return None
    if config.support_stored:
        return SparseDelta(torch.full((sum(sizes),), -1), *shape)
    if config.support == support.EXPLICIT or support.needs_gradient(config.support):
        waiting = SparseDelta(torch.full((sum(sizes),), -1), *shape)
        waiting.missing = _what_is_missing(config.support)
        return waiting
    kept = config.within_mask or held_to_mask(layer, config)
    return SparseDelta(
        find_support(layer, config.support, sizes, rank=rank, seed=config.seed, key=key, parts=parts, kept=kept),
        *shape,
    )


def find_support(
    layer: DseeLayer,
    rule: str,
    sizes: list[int],
    *,
    rank: int,
    seed: int,
    key: str,
    parts: Parts,
    kept: bool,
    gradient: torch.Tensor | None = None,
) -> torch.Tensor:
    """Choose positions in a layer's W by a rule; each part of a fused layer is a matrix of its own.

    Args:
        layer: the layer.
        rule: its name.
        sizes: N of each part.
        rank: r of the update.
        seed: the configuration's.
        key: the layer's path in the base model; each matrix has a seed of its own from it.
        parts: of a fused layer.
        kept: keep to what :func:`kept_weights` returns.
        gradient: sum over batches of |dLoss/dW|, shape (out, in), for rules that look at it.

    Returns:
        int64, shape (N,), flat positions in the whole layer.

    Raises:
        InputError: see :func:`dsee.support.choose`, with the layer's path.
    """
    weight = layer.base_weight()
    mask = kept_weights(layer) if kept else None
    height = weight.shape[0] if parts is None else weight.shape[0] // len(PARTS)
    found = []
    for part, n in zip(parts or (0,), sizes, strict=True):
        name = key if parts is None else f"{key}.{PARTS[part]}"
        rows = slice(part * height, (part + 1) * height)
        # the same in every process and for every order of construction
        own_seed = (seed * 0x9E3779B1 + zlib.crc32(name.encode())) % 2**63
        try:
            chosen = support.choose(
                rule,
                weight[rows],
                n,
                rank=rank,
                seed=own_seed,
                gradient=None if gradient is None else gradient[rows],
                mask=None if mask is None else mask[rows],
            )
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        found.append(chosen + rows.start * weight.shape[1])
    return torch.cat(found)


def held_to_mask(layer: DseeLayer, config: DseeConfig) -> bool:
    """Whether positions outside the mask would be of no use, since the update keeps to it.

    Args:
        layer: the layer.
        config: the update's configuration.
    """
    return config.masked and get_mask(layer) is not None


def kept_weights(layer: DseeLayer) -> torch.Tensor:
    """Return what the base's mask keeps, or without a mask where W is not zero; bool, shape (out, in).

    Args:
        layer: the layer.
    """
    mask = get_mask(layer)
    return layer.base_weight() != 0 if mask is None else mask


def size_of(flat: torch.Tensor, shape: tuple[int, int], key: str, parts: Parts) -> int | list[int]:
    """Return N as ``n_sparse_pattern`` states it: for a fused layer one for each part.

    Args:
        flat: positions in the whole layer.
        shape: (out, in) of the whole layer.
        key: the layer's path, for the message.
        parts: of a fused layer.

    Raises:
        InputError: a position in a part that has no update.
    """
    if parts is None:
        return flat.numel()
    owner = flat // shape[1] // (shape[0] // len(PARTS))
    counts = [int((owner == part).sum()) for part in parts]
    if sum(counts) != flat.numel():
        taken = listed(PARTS[part] for part in parts)
        raise InputError(f"positions of {key}: some lie outside the parts that take an update ({taken}).")
    return counts


def fits(key: str, names: Iterable[str]) -> bool:
    """Whether a name or regular expression fits one of some paths, as PEFT matches its patterns.

    Args:
        key: the name or expression.
        names: paths of modules.
    """
    return any(re.match(rf"(.*\.)?({key})$", name) for name in names)


def check_names(given: Iterable[str], names: list[str], field: str = "positions") -> None:
    """Refuse a name in ``positions``, or in a pattern, that fits no module.

    Args:
        given: names or regular expressions, as in PEFT's patterns.
        names: paths of the modules with an update.
        field: the configuration's field, for the message.

    Raises:
        InputError: a name that fits none, with the nearest that would.
    """
    for key in given:
        try:
            found = fits(key, names)
        except re.error as error:
            raise InputError(f"{field}: {key!r} is neither a name nor a regular expression: {error}.") from None
        if not found:
            raise InputError(
                f"{field}: no module with an update is called {key!r}.{nearest(key, names)} There are: {listed(names)}."
            )


def _what_is_missing(rule: str) -> str:
    how = "positions={module name: positions}" if rule == support.EXPLICIT else "calibration=batches"
    return (
        f"This update's support has not been chosen yet: support={rule!r} waits for it. "
        f"Call dsee.choose_support(model, {how}) before the model is used."
    )
