"""Checkpoints whose sparse matrices are stored as bits and values: ``compact*.safetensors`` and ``compact.json``.

The files are made from what transformers has written, tensor by tensor, so that names, tied weights and shards are
its own. A matrix that would not get smaller stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dsee.artifact.encoding import Encoding, decode, encode, kept_of, parse
from dsee.errors import ArtifactError
from dsee.masks import unpack

INDEX = "compact.json"
#: Version of the layout that ``compact.json`` describes.
FORMAT = 1
#: It holds a line for each sparse matrix; this bounds what a hostile one can make us read.
LARGEST_INDEX = 64 * 2**20
BITS, VALUES = ".dsee_bits", ".dsee_values"


def compress(
    folder: Path, masks: Mapping[str, torch.Tensor], transposed: set[str], blocks: tuple[tuple[int, int], ...]
) -> set[str] | None:
    """Put compact files in the place of a checkpoint's own.

    Args:
        folder: with ``model*.safetensors`` as ``save_pretrained`` wrote them.
        masks: packed bits of the masks, by the path of their matrix.
        transposed: paths of the matrices that are stored as (in, out).
        blocks: shapes of blocks to try.

    Returns:
        Paths of the matrices whose mask is in the new files; None if no matrix gets smaller, and nothing was changed.
    """
    index: dict[str, Any] = {}
    written, sources = [], sorted(folder.glob("model*.safetensors"))
    for source in sources:
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(source, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118 - not a dict
                tensors |= _stored(name, stream.get_tensor(name), masks, transposed, blocks, index)
        written.append(folder / source.name.replace("model", "compact", 1))
        save_file(tensors, written[-1], metadata={"format": "pt"})
    for path in sources if index else written:
        path.unlink()
    if not index:
        return None
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    content = {"format": FORMAT, "files": [path.name for path in written], "tensors": index}
    (folder / INDEX).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return {name.removesuffix(".weight") for name, facts in index.items() if facts["mask"]}


def _stored(
    name: str,
    tensor: torch.Tensor,
    masks: Mapping[str, torch.Tensor],
    transposed: set[str],
    blocks: tuple[tuple[int, int], ...],
    index: dict[str, Any],
) -> dict[str, torch.Tensor]:
    """A tensor as it goes into the file; of an encoded one an entry is made in the index."""
    if tensor.dim() != 2 or not tensor.is_floating_point():
        return {name: tensor}
    path = name.removesuffix(".weight")
    turned = path in transposed
    weight = tensor.T.contiguous() if turned else tensor
    mask = unpack(masks[path], (weight.shape[0], weight.shape[1])) if path in masks else None
    found = encode(weight, mask, transposed=turned, blocks=blocks)
    if found is None:
        return {name: tensor}
    encoding, bits, values = found
    index[name] = encoding.facts()
    return {name + BITS: bits, name + VALUES: values}


def read_index(folder: Path) -> tuple[list[str], dict[str, Encoding]]:
    """Read ``compact.json``.

    Args:
        folder: the checkpoint.

    Returns:
        Names of its files, and how each encoded tensor is stored.

    Raises:
        ArtifactError: damaged, hostile or of a newer format.
    """
    path = folder / INDEX
    try:
        if path.stat().st_size > LARGEST_INDEX:
            raise ArtifactError(f"{path} is larger than any such file: it is damaged or not ours.")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} could not be read ({error}): the file is damaged. Copy or save it again."
        ) from error
    if not isinstance(content, dict) or set(content) != {"format", "files", "tensors"}:
        raise ArtifactError(f"{path} is damaged: it has no format, files or tensors. Copy or save it again.")
    version, files, tensors = content["format"], content["files"], content["tensors"]
    if type(version) is int and version > FORMAT:
        raise ArtifactError(
            f"{path} has format {version}; this dsee reads up to {FORMAT}. Upgrade with: pip install --upgrade dsee"
        )
    plain = isinstance(files, list) and all(
        isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors") for name in files
    )
    if type(version) is not int or version < 1 or not plain or not isinstance(tensors, dict):
        raise ArtifactError(f"{path} is damaged: its format, files or tensors are none. Copy or save it again.")
    try:
        return files, {name: parse(facts) for name, facts in tensors.items()}
    except ArtifactError as error:
        raise ArtifactError(f"{path} is damaged: {error} Copy or save it again.") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as stream:
            yield stream
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} could not be read ({error}). Copy or save it again.") from error


def shapes_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor as the model has it, from headers alone.

    Args:
        folder: a compact checkpoint.

    Raises:
        ArtifactError: damaged or hostile.
    """
    files, index = read_index(folder)
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        with _opened(folder / file) as stream:
            for name in stream.keys():  # noqa: SIM118 - not a dict
                if not name.endswith((BITS, VALUES)):
                    found[name] = tuple(stream.get_slice(name).get_shape())
    for name, encoding in index.items():
        found[name] = encoding.shape[::-1] if encoding.transposed else encoding.shape
    return found


def read_state(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Read a compact checkpoint as transformers would have read the plain one.

    Args:
        folder: the checkpoint.
        expected: shapes of the model's own tensors; a matrix that says it is of another is not written out.

    Returns:
        Its tensors by name.

    Raises:
        ArtifactError: damaged or hostile; the message names the file.
    """
    files, index = read_index(folder)
    state: dict[str, torch.Tensor] = {}
    for file in files:
        path = folder / file
        with _opened(path) as stream:
            names = set(stream.keys())
            for name in sorted(names):
                if name.endswith(BITS) and name.removesuffix(BITS) in index:
                    whole = name.removesuffix(BITS)
                    state[whole] = _checked(path, whole, partial(_decoded, stream, whole, index[whole], expected))
                elif not name.endswith((BITS, VALUES)):
                    state[name] = stream.get_tensor(name)
    if missing := set(index) - set(state):
        raise ArtifactError(f"{folder}: {min(missing)} is in {INDEX}, but in none of its files. Save it again.")
    return state


def _decoded(stream: Any, name: str, encoding: Encoding, expected: Mapping[str, tuple[int, ...]]) -> torch.Tensor:
    _check_shape(name, encoding, expected)
    return decode(encoding, stream.get_tensor(name + BITS), stream.get_tensor(name + VALUES))[0]


def _check_shape(name: str, encoding: Encoding, expected: Mapping[str, tuple[int, ...]]) -> None:
    """A few bits can claim to be a huge matrix: ask the model before any memory is taken for it."""
    shape = encoding.shape[::-1] if encoding.transposed else encoding.shape
    if expected.get(name, shape) != shape:
        raise ArtifactError(f"it is stored as {shape}, where the model has {expected[name]}")
    # of a name that transformers will translate, the size alone
    if encoding.weights > max((prod(sizes) for sizes in expected.values()), default=0):
        raise ArtifactError(f"it is stored as {shape}, which is larger than all of the model's")


def read_masks(folder: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Return the masks that are in a compact checkpoint, bool, (out, in), by the path of their matrix.

    Args:
        folder: the checkpoint.
        expected: shapes of the model's own tensors.

    Raises:
        ArtifactError: damaged or hostile; the message names the file.
    """
    files, index = read_index(folder)
    found = {}
    for file in files:
        path = folder / file
        with _opened(path) as stream:
            for name in sorted({key.removesuffix(BITS) for key in stream.keys()} & set(index)):  # noqa: SIM118 - not a dict
                if index[name].mask:
                    kept = _checked(path, name, partial(_kept, stream, name, index[name], expected))
                    found[name.removesuffix(".weight")] = kept
    return found


def _kept(stream: Any, name: str, encoding: Encoding, expected: Mapping[str, tuple[int, ...]]) -> torch.Tensor:
    _check_shape(name, encoding, expected)
    return kept_of(encoding, stream.get_tensor(name + BITS))


def _checked(path: Path, name: str, read: Callable[[], torch.Tensor]) -> torch.Tensor:
    try:
        return read()
    except (ArtifactError, SafetensorError) as error:
        raise ArtifactError(f"{path}: {name} is damaged: {error}. Copy or save it again.") from error
