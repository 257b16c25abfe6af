"""``dsee.import_lora``: an update that starts as a given LoRA adapter."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dsee.artifact.lora_export import CONFIG, PREFIX, WEIGHTS
from dsee.artifact.lora_names import pattern, target_names
from dsee.artifact.manifest import NAME, verify
from dsee.errors import ArtifactError, InputError, listed, nearest
from dsee.update.bases import linear_shape
from dsee.update.config import DseeConfig

#: Fields that say how a LoRA was made or where its parts lie, which its file tells better, or that an update has too.
_KNOWN = {
    *["task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"],
    *["inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out"],
    *["bias", "use_rslora", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern"],
    *["rank_pattern", "alpha_pattern", "megatron_core", "qalora_group_size", "loftq_config", "eva_config"],
    *["runtime_config"],
}
#: Ways to start that leave the base as it is; the others (pissa, olora, corda, loftq, ...) change it when loaded.
_STARTS = (True, False, "gaussian", "eva", "orthogonal")
#: What the LoRA decides.
_TAKEN = {
    *["r", "alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"],
    *["layers_to_transform", "layers_pattern", "bias", "fused_parts", "init_weights", "support_stored"],
}

Pair = dict[str, torch.Tensor]


def import_lora(base: Any, folder: str | Path, *, adapter_name: str = "default", **config: Any) -> Any:
    """Put an update on a model that starts as a LoRA adapter: U = B, V = A, the same scale, and S2 = 0 on N positions.

    The logits at the start are those of the LoRA model up to rounding: the scale is multiplied in at another place,
    which changes nothing only where it is a power of two.

    Args:
        base: the transformers model the LoRA was tuned on, without PEFT around it.
        folder: the LoRA adapter as PEFT saves it, or as :func:`dsee.export_lora` does.
        adapter_name: the new adapter's name.
        **config: further fields of :class:`dsee.DseeConfig`: ``n_sparse``, ``support``, ``seed``, ``dropout``, ...

    Returns:
        A PeftModel whose update is ready to be tuned.

    Raises:
        InputError: not a LoRA, one that an update cannot represent, a base without its layers, or a field that the
            LoRA decides.
        ArtifactError: the folder is missing, damaged, or was made for a base of other sizes.
    """
    folder = Path(folder)
    _check_call(base, config)
    content = _read_config(folder)
    _refuse_foreign(folder, content)
    pairs, rest = _split(folder, _read_weights(folder))
    _check_layers(folder, base, pairs)
    settings = _settings(folder, base, content, pairs) | config
    if content.get("modules_to_save"):
        full = [*content["modules_to_save"], *(config.get("modules_to_save") or [])]
        settings["modules_to_save"] = list(dict.fromkeys(full))
    model = get_peft_model(base, DseeConfig(**settings), adapter_name=adapter_name)
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    _fill(folder, state, pairs, rest, content.get("modules_to_save") or [])
    set_peft_model_state_dict(model, state, adapter_name=adapter_name)
    return model


def _check_call(base: Any, config: dict[str, Any]) -> None:
    if not isinstance(base, nn.Module) or not hasattr(base, "config"):
        raise InputError(f"import_lora: a {type(base).__name__} is not a transformers model.")
    if hasattr(base, "peft_config") or any(isinstance(module, BaseTunerLayer) for module in base.modules()):
        raise InputError("import_lora: the base carries an adapter already. Give the plain transformers model.")
    taken = sorted(set(config) & _TAKEN)
    if taken:
        raise InputError(f"import_lora: {listed(taken)}: the LoRA decides that. Leave it out.")
    unknown = sorted(set(config) - set(DseeConfig.__dataclass_fields__))
    if unknown:
        hint = nearest(unknown[0], DseeConfig.__dataclass_fields__)
        raise InputError(f"import_lora: DseeConfig has no field {unknown[0]!r}.{hint}")


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: there is no such folder.")
    if (folder / NAME).is_file():
        verify(folder)
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} is not an adapter: it has no {CONFIG}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} could not be read ({error}): the file is damaged. Copy it again.") from error
    if not isinstance(content, dict) or not isinstance(content.get("peft_type"), str):
        raise ArtifactError(f"{path} does not describe an adapter: it has no peft_type.")
    return content


def _refuse_foreign(folder: Path, content: dict[str, Any]) -> None:
    """Refuse, by the field's name, every LoRA that is more than B A beside a frozen W."""
    if content["peft_type"] != "LORA":
        raise InputError(f"{folder} holds a {content['peft_type']} adapter; only LoRA starts an update.")
    defaults = LoraConfig().to_dict()
    for field in sorted(set(content) - _KNOWN):
        if content[field] and content[field] != defaults.get(field):
            raise InputError(
                f"{folder}: {field}={content[field]!r} makes this more than a plain LoRA, "
                "which is all that U V can hold."
            )
    start = content.get("init_lora_weights", True)
    if not any(start is known or (isinstance(known, str) and start == known) for known in _STARTS):
        raise InputError(
            f"{folder}: init_lora_weights={start!r} changes the base when it is loaded. Convert it to a plain "
            "LoRA first: PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        remedy = " It has adapter_model.bin, which would have to be unpickled: save it again with a newer PEFT."
        raise ArtifactError(f"{folder} has no {WEIGHTS}.{remedy if pickled else ' Copy it again.'}")
    try:
        state: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} could not be read ({error}): the file is damaged. Copy it again.") from error
    for key, value in state.items():
        if not key.startswith(PREFIX):
            raise ArtifactError(f"{path}: {key} is not named as PEFT names an adapter's parts.")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ArtifactError(f"{path}: {key} has values that are NaN or infinite.")
    return state


def _split(folder: Path, state: dict[str, torch.Tensor]) -> tuple[dict[str, Pair], dict[str, torch.Tensor]]:
    """Sort the file into A and B by layer's path, and what is trained beside them."""
    pairs: dict[str, Pair] = {}
    rest: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        path, _, part = key.removeprefix(PREFIX).partition(".lora_")
        if not part:
            rest[key] = value
        elif part in ("A.weight", "B.weight"):
            pairs.setdefault(path, {})[part[0]] = value
        elif part in ("embedding_A", "embedding_B"):
            # A LoRA's A, (r, vocabulary), is what an update has for U, (vocabulary, r)
            pairs.setdefault(path, {})["B" if part.endswith("A") else "A"] = value.T.contiguous()
        else:
            what = f"a part called lora_{part.partition('.')[0]}"
            raise InputError(f"{folder}: {path} has {what}; an update has only U V, which is B A.")
    if not pairs:
        raise ArtifactError(f"{folder / WEIGHTS} holds no LoRA matrices.")
    for path, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise ArtifactError(f"{folder / WEIGHTS}: {path} has lora_{min(pair)} only; half of the pair is missing.")
    return pairs, rest


def _check_layers(folder: Path, base: nn.Module, pairs: dict[str, Pair]) -> None:
    modules = dict(base.named_modules())
    for path, pair in pairs.items():
        if path not in modules:
            raise InputError(
                f"{folder}: the LoRA is on {path}, which this {type(base).__name__} does not have."
                f"{nearest(path, modules)}"
            )
        A, B = pair["A"], pair["B"]
        try:
            shape = linear_shape(modules[path])
        except InputError as error:
            raise InputError(
                f"{folder}: the LoRA is on {path}, a {type(modules[path]).__name__}; an update goes on Linear, "
                "Conv1D and Embedding layers only."
            ) from error
        if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or (B.shape[0], A.shape[1]) != shape:
            raise ArtifactError(
                f"{folder}: {path}: B {tuple(B.shape)} and A {tuple(A.shape)} do not make a {shape[0]} x {shape[1]} "
                "matrix: the LoRA was tuned on another base, or its file is damaged."
            )


def _settings(folder: Path, base: nn.Module, content: dict[str, Any], pairs: dict[str, Pair]) -> dict[str, Any]:
    """The fields of ``DseeConfig`` that give U V the LoRA's ranks and scales."""
    try:
        rank, alpha = int(content["r"]), float(content["lora_alpha"])
        of_rank, of_alpha = dict(content.get("rank_pattern") or {}), dict(content.get("alpha_pattern") or {})
        ranks = {path: int(of_rank.get(get_pattern_key(of_rank, path), rank)) for path in pairs}
        alphas = {path: float(of_alpha.get(get_pattern_key(of_alpha, path), alpha)) for path in pairs}
        dropout = float(content.get("lora_dropout") or 0.0)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / CONFIG} has no usable r, lora_alpha or pattern ({error!r}).") from error
    for path, pair in pairs.items():
        if ranks[path] != pair["A"].shape[0]:
            raise ArtifactError(
                f"{folder}: {path} has rank {pair['A'].shape[0]} in {WEIGHTS} and {ranks[path]} in {CONFIG}: the two "
                "do not belong together."
            )
        if not (math.isfinite(alphas[path]) and alphas[path] > 0):
            raise InputError(f"{folder}: {path} has lora_alpha={alphas[path]}; an update's scale is positive.")
    bias = content.get("bias") or "none"
    return {
        "task_type": content.get("task_type"),
        "base_model_name_or_path": content.get("base_model_name_or_path"),
        "revision": content.get("revision"),
        "target_modules": target_names(pairs, base),
        "r": max(ranks.values()),
        "alpha": alphas[max(ranks, key=ranks.__getitem__)],
        "rank_pattern": pattern(ranks, max(ranks.values())),
        "alpha_pattern": pattern(alphas, alphas[max(ranks, key=ranks.__getitem__)]),
        "use_rslora": bool(content.get("use_rslora")),
        "dropout": dropout,
        "bias": {"lora_only": "dsee_only"}.get(bias, bias),
        # B A lies over the whole of a layer that fuses query, key and value
        "fused_parts": {},
    }


def _fill(
    folder: Path, state: dict[str, torch.Tensor], pairs: dict[str, Pair], rest: dict[str, torch.Tensor], full: list[str]
) -> None:
    """Put the LoRA's numbers in the place of the new update's, and its head in the place of the new head."""
    trained = {key for key in state if ".dsee_" not in key}
    for key in sorted(trained - set(rest)):
        if set(key.split(".")) & set(full):
            raise ArtifactError(f"{folder / WEIGHTS} holds no weights for {key.removeprefix(PREFIX)}. Copy it again.")
    for key in sorted(rest):
        if key not in trained:
            raise InputError(
                f"{folder} also holds {key.removeprefix(PREFIX)}, which is no part of a LoRA (a resized embedding?). "
                "Name its module in modules_to_save, or load the folder with PEFT and merge it first."
            )
        if rest[key].shape != state[key].shape:
            raise ArtifactError(
                f"{folder}: {key.removeprefix(PREFIX)} is {tuple(rest[key].shape)}, the base's is "
                f"{tuple(state[key].shape)}: made for another base, or damaged."
            )
        state[key] = rest[key].to(state[key].dtype)
    for path, pair in pairs.items():
        for part, ours in (("A", "dsee_V"), ("B", "dsee_U")):
            key = f"{PREFIX}{path}.{ours}.weight"
            state[key] = pair[part].to(state[key].dtype)
