"""``dsee.export_lora``: the update as a plain LoRA adapter, for those who have PEFT but not dsee."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

from dsee.artifact.atomic import whole_folder
from dsee.artifact.auto import is_cut
from dsee.artifact.card import describe
from dsee.artifact.lora_factors import lora_factors
from dsee.artifact.lora_names import pattern, target_names
from dsee.artifact.manifest import Manifest, owned_entries, refuse_other_kind, verify, write_manifest
from dsee.errors import InputError, OrderError, listed, nearest
from dsee.pruning.gates import has_gates
from dsee.steps import history
from dsee.update.config import DseeConfig
from dsee.update.embedding import DseeEmbedding, embeddings_to_save
from dsee.update.layer import update_layers
from dsee.update.masked import keeps_to_mask

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."

_CARD = """---
library_name: peft
base_model: {base}
tags:
- lora
- dsee
---

# LoRA of rank {rank} on {matrices} matrices

A low-rank plus sparse update, tuned with dsee and written as a plain LoRA adapter of the same function: the sparse part
became further ranks. It needs PEFT, not dsee.

```python
from peft import PeftModel
model = PeftModel.from_pretrained(base, "this-folder")
```

{note}"""

_CUT_NOTE = """The base this was tuned on was cut (heads or neurons removed), and the adapter fits that base only.
Loading the cut base takes `import dsee`.

"""


def export_lora(model: Any, folder: str | Path, adapter: str | None = None, *, uniform: bool = False) -> Path:
    """Write one adapter as a plain LoRA adapter: the same logits, opened by stock PEFT without dsee.

    dW = B A exactly, see :func:`dsee.artifact.lora_factors.lora_factors`: the rank is r plus the fewest rows and
    columns that hold S2's non-zeros. Each matrix has a rank of its own (``rank_pattern``), scaled by alpha / r = 1.
    The task head and trained biases are kept.

    Args:
        model: a PeftModel with an update.
        folder: where to; an earlier export there is replaced, anything else is left alone.
        adapter: the adapter's name; the active one by default.
        uniform: fill all matrices up with zeros to the largest rank, for readers that know one rank only.

    Returns:
        The folder.

    Raises:
        InputError: no PeftModel, no such adapter, one that is not dsee's or keeps to a mask; or a folder that holds
            something else.
        OrderError: the update is zero everywhere, so that there is nothing to export, or the model has gates.
        ArtifactError: the folder could not be written.
    """
    name = _adapter_name(model, adapter)
    base = model.get_base_model()
    _refuse_what_lora_cannot_say(base, name)
    factors = {path: lora_factors(layer, name) for path, layer in update_layers(base) if layer.has_update(name)}
    factors = {path: (B, A) for path, (B, A) in factors.items() if A.shape[0]}
    if not factors:
        raise OrderError(f"export_lora: the update of adapter {name!r} is zero everywhere. Tune it first.")
    if uniform:
        factors = _padded(factors)
    config = _lora_config(model, name, {path: A.shape[0] for path, (_, A) in factors.items()})
    state = _state(model, name, factors)
    target = Path(folder)
    refuse_other_kind(target, ("lora",))
    with whole_folder(target, check=verify, owned=owned_entries) as writing:
        _write_config(config, writing)
        save_file(state, writing / WEIGHTS, metadata={"format": "pt"})
        (writing / "README.md").write_text(_card(model, config, len(factors)), encoding="utf-8")
        facts = {"matrices": len(factors), "largest_rank": config.r, "values": sum(v.numel() for v in state.values())}
        write_manifest(writing, Manifest(kind="lora", history=history(model), facts=facts))
    return target


def _adapter_name(model: Any, adapter: str | None) -> str:
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or not hasattr(model, "get_base_model"):
        raise InputError(f"export_lora: a {type(model).__name__} carries no update. Give a PeftModel with one.")
    if adapter is None:
        active = list(model.active_adapters)
        if len(active) != 1:
            raise InputError(f"export_lora: {listed(active)} are active. Say which one to export: adapter=...")
        adapter = active[0]
    if adapter not in configs:
        raise InputError(
            f"export_lora: there is no adapter {adapter!r}.{nearest(adapter, configs)} "
            f"Loaded: {listed(sorted(configs))}."
        )
    if not isinstance(configs[adapter], DseeConfig):
        raise InputError(
            f"export_lora: adapter {adapter!r} is a {configs[adapter].peft_type}, not an update of dsee. PEFT saves it "
            "with model.save_pretrained(folder)."
        )
    return adapter


def _refuse_what_lora_cannot_say(base: Any, name: str) -> None:
    if has_gates(base):
        raise OrderError(
            "export_lora: this model has gates, which no LoRA adapter holds. Call dsee.fold_gates(model) first, and "
            "ship the base that this leaves."
        )
    held = [path for path, layer in update_layers(base) if layer.has_update(name) and keeps_to_mask(layer, name)]
    if held:
        raise InputError(
            f"export_lora: adapter {name!r} keeps to the base's mask (first: {held[0]}), and a masked U V has no low "
            "rank. Merge it, or save it as it is: dsee.save(model, folder, base=False)."
        )


def _padded(factors: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    largest = max(A.shape[0] for _, A in factors.values())
    pad = torch.nn.functional.pad
    return {
        path: (pad(B, (0, largest - B.shape[1])), pad(A, (0, 0, 0, largest - A.shape[0])))
        for path, (B, A) in factors.items()
    }


def _lora_config(model: Any, name: str, ranks: dict[str, int]) -> LoraConfig:
    config: DseeConfig = model.peft_config[name]
    base, largest = model.get_base_model(), max(ranks.values())
    # alpha / r = 1 for all: also for a reader that looks at neither pattern, but at r and alpha alone
    odd = pattern(ranks, largest)
    transposed = any(layer.transposed for path, layer in update_layers(base) if path in ranks)
    return LoraConfig(
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        inference_mode=True,
        r=largest,
        lora_alpha=largest,
        rank_pattern=odd,
        alpha_pattern=dict(odd),
        target_modules=target_names(ranks, base),
        lora_dropout=config.dropout,
        fan_in_fan_out=transposed,
        bias={"dsee_only": "lora_only"}.get(config.bias, config.bias),
        modules_to_save=list(dict.fromkeys(config.modules_to_save)) if config.modules_to_save else None,
    )


def _state(model: Any, name: str, factors: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The adapter's file under LoRA's names; what is not the update (heads, biases) as PEFT saves it."""
    paths = [path for path, _ in update_layers(model.get_base_model())]
    update = tuple(f"{PREFIX}{path}.dsee_" for path in paths)
    whole = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=embeddings_to_save(model))
    rest = {k: v for k, v in whole.items() if not k.startswith(update)}
    for path in paths:
        if path not in factors:
            # a LoRA of these ranks leaves this layer alone, so that its bias has no wrapper around it
            inner = f"{PREFIX}{path}.base_layer."
            rest = {k.replace(inner, f"{PREFIX}{path}."): v for k, v in rest.items()}
    modules = dict(model.get_base_model().named_modules())
    for path, (B, A) in factors.items():
        if isinstance(modules[path], DseeEmbedding):
            # LoRA looks columns up where dsee looks rows up
            rest[f"{PREFIX}{path}.lora_embedding_A"] = B.T
            rest[f"{PREFIX}{path}.lora_embedding_B"] = A.T
        else:
            rest[f"{PREFIX}{path}.lora_A.weight"] = A
            rest[f"{PREFIX}{path}.lora_B.weight"] = B
    return {key: rest[key].detach().cpu().contiguous().clone() for key in sorted(rest)}


def _write_config(config: LoraConfig, folder: Path) -> None:
    config.save_pretrained(str(folder))
    path = folder / CONFIG
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content["target_modules"], list):
        # PEFT keeps a set, whose order differs from one process to the next
        content["target_modules"] = sorted(content["target_modules"])
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _card(model: Any, config: LoraConfig, matrices: int) -> str:
    steps = history(model)
    note = _CUT_NOTE if is_cut(model.get_base_model()) else ""
    if steps:
        note += "## How it was made\n\n" + "".join(f"{i}. {describe(s)}\n" for i, s in enumerate(steps, 1))
    base = config.base_model_name_or_path
    # a path of this machine says nothing to others, and the Hub wants a name there or nothing
    named = base if base and not Path(base).exists() else "unknown"
    return _CARD.format(base=named, rank=config.r, matrices=matrices, note=note)
