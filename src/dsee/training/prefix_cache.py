"""Frozen layers below the first trained one, run once: what they make of a sentence is the same in every epoch."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsee.architectures import base_model, find, layers
from dsee.architectures._view import submodule
from dsee.errors import ArtifactError, InputError
from dsee.modes import evaluating
from dsee.tasks.encode import Encoded, batches

BATCH = 64
#: Key under which an example carries the number of its stored states; a batch carries the states instead.
ROW = "prefix_row"
_EMBEDDINGS = ("embeddings", "embeddings_project")

Collate = Callable[[list[dict[str, Any]]], Any]


class CachedPart(Encoded):
    """One part of a data set whose examples also say where their hidden states lie."""

    def __init__(self, part: Encoded, first: int) -> None:
        """Number the examples.

        Args:
            part: the examples.
            first: number of the first one.
        """
        self.kind, self.long = part.kind, part.long
        self.features = [features | {ROW: first + i} for i, features in enumerate(part.features)]


class _Stored:
    """Hidden states of all examples, padding left out, in one memory-mapped file."""

    def __init__(self, states: torch.Tensor, lengths: list[int]) -> None:
        self.states = states
        self.starts = [0]
        for length in lengths:
            self.starts.append(self.starts[-1] + length)

    def rows(self, numbers: list[int]) -> torch.Tensor:
        return torch.cat([self.states[self.starts[n] : self.starts[n + 1]] for n in numbers])


class _Given(nn.Module):
    """Stands where the embeddings were: the hidden states are given."""

    def forward(self, *args: Any, inputs_embeds: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
        given = [*args, inputs_embeds]
        return next(value for value in given if torch.is_tensor(value) and value.is_floating_point())


class _ReachedError(Exception):
    """Ends a forward pass at the layer whose input was wanted."""


def frozen_prefix(model: nn.Module) -> int:
    """Return how many layers at the bottom say the same of a sentence in every epoch.

    Args:
        model: a classifier of a mapped encoder family, with what is trained switched on.

    Raises:
        ArchitectureError: the family has no map.
        InputError: the family is no such encoder, or something below is trained or random.
    """
    base, stack = base_model(model), layers(model)
    where = find(model).layers
    if not isinstance(where, str) or not hasattr(base, "embeddings") or getattr(base.config, "is_decoder", False):
        raise InputError(
            f"cache_prefix: {type(base).__name__} is no encoder with an 'embeddings' part, so its lower layers cannot "
            "be left out of a pass. Set cache_prefix: false."
        )
    for name, parameter in base.named_parameters():
        if parameter.requires_grad and not name.startswith((f"{where}.", "pooler.")):
            raise InputError(
                f"cache_prefix: {name} is trained and comes before the layers, so what enters them changes. Freeze it, "
                "or set cache_prefix: false."
            )
    trained = [view.index for view in stack if any(p.requires_grad for p in view.module.parameters())]
    # with only a head to train the last layer still runs: the cache ends at a layer's door
    prefix = min([*trained, len(stack) - 1])
    if prefix == 0:
        upper = list(range(len(stack) // 2, len(stack)))
        raise InputError(
            "cache_prefix: the first layer is trained (or the only one), so there is nothing below it to keep. Adapt "
            f"upper layers only, for example layers_to_transform: {upper}, or set cache_prefix: false."
        )
    _refuse_random([getattr(base, name) for name in _EMBEDDINGS if hasattr(base, name)], "the embeddings")
    for view in stack[:prefix]:
        _refuse_random([view.module], f"layer {view.index}")
    return prefix


def _refuse_random(parts: list[nn.Module], where: str) -> None:
    for module in (module for part in parts for module in part.modules()):
        rates = {k: v for k, v in vars(module).items() if "drop" in k and isinstance(v, float)}
        if isinstance(module, nn.Dropout):
            rates["p"] = module.p
        if any(rate > 0 for rate in rates.values()):
            raise InputError(
                f"cache_prefix: there is dropout in {where}, so what enters the layers above differs from one epoch to "
                "the next. Set base_dropout: 0 in the recipe (dsee.training.fit.set_dropout(model, 0) in Python), or "
                "cache_prefix: false."
            )


@contextmanager
def prefix_cache(model: nn.Module, parts: list[Encoded], collate: Collate) -> Iterator[tuple[list[Encoded], Collate]]:
    """Run the frozen lower layers once over the data; inside the block the model starts at the first trained layer.

    The hidden states are kept in a memory-mapped temporary file of (tokens x width) numbers. Losses are those of the
    whole model up to rounding: other batches mean other orders of summation in the frozen layers. In the block the
    model takes the batches of the yielded collator and no others; names of its parameters do not change.

    Args:
        model: see :func:`frozen_prefix`.
        parts: the data to be trained on and evaluated on.
        collate: makes a padded batch from features, with an ``attention_mask``.

    Yields:
        The parts and the collator to use instead.

    Raises:
        InputError: there is no such prefix, or the model does not give the same logits without its lower layers.
        ArtifactError: no room for the hidden states.
    """
    prefix = frozen_prefix(model)
    with tempfile.TemporaryDirectory(prefix="dsee-prefix-") as folder:
        cached: list[Encoded] = []
        for part in parts:
            cached.append(CachedPart(part, sum(len(earlier) for earlier in cached)))
        probe = [features for part in parts for features in part.features][:4]
        with evaluating(model), torch.no_grad():
            stored = _store(model, prefix, parts, collate, Path(folder))
            expected = _logits(model, collate(probe))
            from_states = _Collate(collate, stored)
            with _without(model, prefix):
                found = _logits(model, from_states(_numbered(cached, len(probe))))
        _compare(model, expected, found)
        with _without(model, prefix):
            yield cached, from_states


class _Collate:
    """Makes a batch whose ``inputs_embeds`` are stored hidden states, zero where the batch is padded."""

    def __init__(self, collate: Collate, stored: _Stored) -> None:
        self.collate, self.stored = collate, stored

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [example[ROW] for example in features]
        batch = self.collate([{k: v for k, v in example.items() if k != ROW} for example in features])
        mask = batch["attention_mask"].bool()
        states = self.stored.rows(rows)
        hidden = states.new_zeros(*mask.shape, states.shape[-1])
        hidden[mask] = states
        kept = {k: v for k, v in batch.items() if k in ("attention_mask", "labels")}
        return {**kept, "inputs_embeds": hidden}


def _numbered(cached: list[Encoded], count: int) -> list[dict[str, Any]]:
    return [features for part in cached for features in part.features][:count]


@contextmanager
def _without(model: nn.Module, prefix: int) -> Iterator[None]:
    """Take embeddings and lower layers out of the model, and put them back at the end."""
    base = base_model(model)
    path, _, leaf = str(find(model).layers).rpartition(".")
    holder = submodule(base, path)
    whole = getattr(holder, leaf)
    upper = nn.ModuleList()
    for number, layer in enumerate(whole):
        if number >= prefix:
            # under its own number, so that its parameters keep their names
            upper.add_module(str(number), layer)
    kept = {name: getattr(base, name) for name in _EMBEDDINGS if hasattr(base, name)}
    upper.train(whole.training)
    try:
        setattr(holder, leaf, upper)
        for name in kept:
            setattr(base, name, _Given())
        yield
    finally:
        setattr(holder, leaf, whole)
        for name, module in kept.items():
            setattr(base, name, module)


def _store(model: nn.Module, prefix: int, parts: list[Encoded], collate: Collate, folder: Path) -> _Stored:
    """Run everything below the first trained layer over all examples, and write what comes out."""
    door = layers(model)[prefix].module
    seen: list[torch.Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise _ReachedError

    lengths = [int(sum(f["attention_mask"])) for part in parts for f in part.features]
    stored, handle = None, door.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        first = 0
        for part in parts:
            for positions, batch in batches(part, collate, BATCH):
                seen.clear()
                _logits(model, batch)
                states = seen[0].cpu()
                if stored is None:
                    stored = _Stored(_room(folder, sum(lengths), states), lengths)
                for row, position in enumerate(positions):
                    start, end = stored.starts[first + position], stored.starts[first + position + 1]
                    stored.states[start:end] = states[row, batch["attention_mask"][row].bool()]
            first += len(part)
    finally:
        handle.remove()
    assert stored is not None, "a data set has rows"  # noqa: S101 - read_table refuses empty files
    return stored


def _room(folder: Path, tokens: int, like: torch.Tensor) -> torch.Tensor:
    """Return a (tokens, width) tensor that lies in a file; its blocks are really taken, not promised."""
    path, numbers = folder / "states", tokens * like.shape[-1]
    try:
        with path.open("wb") as stream:
            # written in full: a write into a hole of a mapped file kills the process when the disk is full
            blank = bytes(2**20)
            for start in range(0, numbers * like.element_size(), len(blank)):
                stream.write(blank[: numbers * like.element_size() - start])
    except OSError as error:
        raise ArtifactError(
            f"cache_prefix: no room for {numbers * like.element_size() / 2**20:.0f} MiB of hidden states in "
            f"{folder.parent} ({error.strerror}). Set TMPDIR to a larger disk, or cache_prefix: false."
        ) from error
    flat = torch.from_file(str(path), shared=True, size=numbers, dtype=like.dtype)
    return flat.view(tokens, like.shape[-1])


def _logits(model: nn.Module, batch: Any) -> torch.Tensor | None:
    device = next(model.parameters()).device
    inputs = {key: tensor.to(device) for key, tensor in batch.items() if key != "labels"}
    try:
        logits: torch.Tensor = model(**inputs).logits
    except _ReachedError:
        return None
    return logits.float()


def _compare(model: nn.Module, expected: torch.Tensor | None, found: torch.Tensor | None) -> None:
    """Refuse a model that hands its layers more than the hidden states and the mask."""
    assert expected is not None  # noqa: S101 - for the type: no hook is left that could stop the pass
    assert found is not None  # noqa: S101 - likewise
    room = math.sqrt(torch.finfo(next(model.parameters()).dtype).eps)
    if not torch.allclose(expected, found, rtol=room, atol=room * float(expected.abs().max())):
        raise InputError(
            f"cache_prefix: {type(base_model(model)).__name__} gives other logits when it starts from stored hidden "
            f"states (difference {float((expected - found).abs().max()):.2g}). Set cache_prefix: false."
        )
