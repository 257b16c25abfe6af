"""What a folder claims against what its files hold, before any model is built from the claim.

``config.json`` and ``adapter_config.json`` decide how many layers are made and how large a matrix is. A hostile or
damaged one could ask for more than a machine has. The files' own headers say how much there really is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dsee.artifact.compact import INDEX, shapes_of
from dsee.artifact.manifest import Manifest
from dsee.errors import ArtifactError

#: Fields that make a loop as long as they say, in the families that transformers has.
LAYERS = (
    *("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers"),
    *("encoder_layers", "decoder_layers", "num_blocks", "num_hidden_groups"),
)
#: Beyond any classifier; transformers makes a dictionary of this size.
MOST_LABELS = 2**20
#: Larger ranks and supports than any default, which a configuration may hold beside patterns for each matrix.
FREE_RANK, FREE_SPARSE = 2**10, 2**16
#: So many take no memory to speak of, whatever the files hold.
FREE_PARAMETERS = 2**24
LARGEST_JSON = 64 * 2**20


#: Fields of ``adapter_config.json`` that are regular expressions, or have such for keys.
PATTERNS = ("target_modules", "exclude_modules")
PATTERN_KEYS = ("rank_pattern", "alpha_pattern", "n_sparse_pattern", "fused_parts")
#: Open-ended repetitions in one expression; beyond, matching a path may take longer than anyone waits.
MOST_REPEATS = 5


def guard(folder: Path, manifest: Manifest) -> None:
    """Refuse a folder whose configurations ask for more than its files can fill.

    Args:
        folder: the artifact.
        manifest: its manifest.

    Raises:
        ArtifactError: the message names the file and the field.
    """
    if "config.json" in manifest.files:
        _guard_base(folder)
    for name in manifest.files:
        if name.endswith("adapter_config.json"):
            _guard_adapter((folder / name).parent)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ArtifactError(f"{path} is larger than any configuration: the file is damaged or not ours.")
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({error!r}). Save it again.") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} is no configuration. Save it again.")
    return content


def _shapes(paths: list[Path]) -> list[tuple[int, ...]]:
    found = []
    for path in paths:
        try:
            with safe_open(path, framework="numpy") as stream:
                found += [tuple(stream.get_slice(name).get_shape()) for name in stream.keys()]  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path} is no safetensors file ({error}). Copy or save it again.") from error
    return found


def _numbers(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, int]]:
    """Path, last name and value of every whole number in dicts; lists are as long as the file allows."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            yield prefix + key, key, value


def _guard_base(folder: Path) -> None:
    path = folder / "config.json"
    content = _read(path)
    if (folder / INDEX).is_file():
        shapes = list(shapes_of(folder).values())
    else:
        shapes = _shapes(sorted(folder.glob("model*.safetensors")))
    for where, key, value in _numbers(content):
        # no layer is without a tensor of its own
        most = len(shapes) if key in LAYERS else MOST_LABELS if key == "num_labels" else None
        if most is not None and value > most:
            raise ArtifactError(f"{path}: {where}={value}, but the files hold {len(shapes)} tensors. Save it again.")


def check_room(path: Path, parameters: int, stored: int) -> None:
    """Refuse a model with far more parameters than its files fill.

    Args:
        path: the configuration, for the message.
        parameters: of the model, tied ones once.
        stored: numbers in the files.

    Raises:
        ArtifactError: there are too few.
    """
    # a tensor or two that are missing are named by whoever misses them
    if parameters > 4 * stored + FREE_PARAMETERS:
        raise ArtifactError(
            f"{path} describes a model of {parameters:,} parameters, and the files hold {stored:,}. Save it again."
        )


def stored_numbers(folder: Path) -> int:
    """Return how many numbers the weight files of a checkpoint hold once they are written out.

    Args:
        folder: the checkpoint.
    """
    if (folder / INDEX).is_file():
        return sum(prod(shape) for shape in shapes_of(folder).values())
    return sum(prod(shape) for shape in _shapes(sorted(folder.glob("model*.safetensors"))))


def _guard_adapter(folder: Path) -> None:
    path = folder / "adapter_config.json"
    content = _read(path)
    if slow := slow_patterns(content):
        raise ArtifactError(f"{path}: matching {slow[0][:80]!r} could take for ever. Name the modules in a list.")
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        return
    shapes = _shapes([weights])
    longest = max((max(shape, default=1) for shape in shapes), default=0)
    largest = max((prod(shape) for shape in shapes), default=0)
    limits = {"r": max(longest, FREE_RANK), "n_sparse": max(largest, FREE_SPARSE)}
    for name, most in limits.items():
        pattern = content.get("rank_pattern" if name == "r" else "n_sparse_pattern")
        values = list(pattern.values()) if isinstance(pattern, dict) else []
        flat = [
            one for value in [content.get(name), *values] for one in (value if isinstance(value, list) else [value])
        ]
        if any(isinstance(value, int) and value > most for value in flat):
            raise ArtifactError(f"{path}: {name} or its pattern asks for more than {weights} holds. Save it again.")


def slow_patterns(content: Mapping[str, Any]) -> list[str]:
    """Return the regular expressions of an adapter's configuration that could take for ever to match.

    Python's own search backtracks: a repeated group with a repetition or a choice in it takes time that grows as a
    power of two, and n open-ended repetitions in a row as the nth power of the path's length.

    Args:
        content: the configuration, as plain data.
    """
    found = [content.get(name) for name in PATTERNS]
    for name in PATTERN_KEYS:
        keys = content.get(name)
        found += list(keys) if isinstance(keys, dict) else []
    return [text for text in found if isinstance(text, str) and _is_slow(text)]


def _is_slow(text: str) -> bool:
    # what is escaped, or stands in a class of characters, repeats nothing
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "c", re.sub(r"\\.", "c", text))
    return bool(re.search(r"\)[*+{]", bare)) or sum(bare.count(sign) for sign in "*+{") > MOST_REPEATS
