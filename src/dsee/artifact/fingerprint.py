"""Which base an update belongs to, when the base's weights are not in the folder: a hash for each of its tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers.pytorch_utils import Conv1D

from dsee.architectures._registry import plain_model
from dsee.artifact.base import Written, base_state, plain_path
from dsee.artifact.manifest import FORMAT
from dsee.errors import ArtifactError, InputError, listed
from dsee.masks import unpack

#: What the base has to be.
BASE = "base.json"
LARGEST = 64 * 2**20


def check_separable(model: Any) -> None:
    """Make sure that the update can do without this very copy of its base.

    Args:
        model: what is about to be saved with ``base=False``.

    Raises:
        InputError: no PeftModel, or one that trained biases of its base in place.
    """
    if plain_model(model) is model:
        raise InputError(f"save: base=False leaves nothing of a {type(model).__name__}: it carries no update.")
    for name, config in model.peft_config.items():
        if getattr(config, "bias", "none") != "none":
            raise InputError(
                f"save: adapter {name!r} has trained biases of its base (bias={config.bias!r}), so the base belongs to "
                "it. Save with the base."
            )


def write_fingerprint(base: Any, folder: Path) -> Written:
    """Write ``base.json``.

    Args:
        base: the transformers model under the updates.
        folder: where to.

    Returns:
        As :func:`dsee.artifact.base.write_base` does.
    """
    trained = sorted(name for name, m in base.named_modules() if isinstance(m, AuxiliaryTrainingWrapper))
    model_type = str(base.config.model_type)
    content = {
        "model_type": model_type,
        "class": type(base).__name__,
        "trained": trained,
        "tensors": _hashes(base_state(base), trained, {}),
    }
    (folder / BASE).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return Written(model_type, FORMAT)


def _hashes(state: Mapping[str, torch.Tensor], trained: list[str], kept: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """dtype, shape and hash of each tensor, masks put on; modules that the update brings along are left out."""
    own = tuple(f"{name}." for name in trained)
    found = {}
    for name, tensor in state.items():
        if not name.startswith(own):
            mask = kept.get(name.removesuffix(".weight"))
            whole = tensor.detach() if mask is None else tensor.detach().masked_fill(~mask.to(tensor.device), 0.0)
            data = whole.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            kind = str(tensor.dtype).removeprefix("torch.")
            found[name] = f"{kind} {list(tensor.shape)} {hashlib.sha256(data).hexdigest()[:32]}"
    return found


def check_base(base: Any, folder: Path, masks: Mapping[str, torch.Tensor]) -> None:
    """Make sure that a model is the base that an update was tuned on, but for zeros that its masks will write.

    Args:
        base: the transformers model; updates of others may be on it already.
        folder: with ``base.json``.
        masks: packed bits of the update's masks, by the path of each matrix.

    Raises:
        ArtifactError: it is another model, of another size, dtype or other weights; or the file is damaged.
    """
    path = folder / BASE
    stored, trained = _read(path)
    state = base_state(base)
    found = _hashes(state, trained, _masks_of(base, path, masks, state))
    why = f"{folder} holds an update for another base"
    if stored.keys() != found.keys():
        odd = sorted(stored.keys() ^ found.keys())
        raise ArtifactError(f"{why}: only one of the two has {listed(odd, 3)}. Load it on the base it was tuned on.")
    different = [name for name in sorted(stored) if stored[name] != found[name]]
    if different:
        first = different[0]
        ours, theirs = (text.rpartition(" ")[0] for text in (stored[first], found[first]))
        how = "has other weights" if ours == theirs else f"is {theirs}, not {ours}"
        raise ArtifactError(
            f"{why}: {first} {how} ({len(different)} of {len(stored)} tensors differ). Load it on the base it was "
            "tuned on, with the same dtype and the same cuts."
        )


def _read(path: Path) -> tuple[dict[str, str], list[str]]:
    try:
        if path.stat().st_size > LARGEST:
            raise ArtifactError(f"{path} is larger than any such file: it is damaged or not ours.")
        content = json.loads(path.read_bytes())
        tensors, trained = content["tensors"], content["trained"]
        if not all(isinstance(text, str) for text in [*tensors.values(), *trained]):
            raise ValueError("not text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error!r}). Copy or save it again.") from error
    return tensors, list(trained)


def _masks_of(
    base: Any, path: Path, masks: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What the masks keep, in each matrix's own orientation."""
    turned = {plain_path(name) for name, module in base.named_modules() if isinstance(module, Conv1D)}
    found = {}
    for name, bits in masks.items():
        weight = state.get(f"{name}.weight")
        try:
            if weight is None or weight.dim() != 2 or bits.dtype != torch.uint8:
                raise InputError("there is no such matrix")
            shape = (weight.shape[1], weight.shape[0]) if name in turned else (weight.shape[0], weight.shape[1])
            mask = unpack(bits, shape)
        except InputError as error:
            raise ArtifactError(f"{path.parent}: the mask of {name} does not fit this base ({error}).") from error
        found[name] = mask.T if name in turned else mask
    return found
