"""``dsee.save``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file

from dsee.architectures._registry import plain_model
from dsee.artifact.atomic import whole_folder
from dsee.artifact.base import Written, write_base
from dsee.artifact.card import card
from dsee.artifact.fingerprint import check_separable, write_fingerprint
from dsee.artifact.guard import slow_patterns
from dsee.artifact.manifest import FORMAT, Kind, Manifest, owned_entries, refuse_other_kind, verify, write_manifest
from dsee.artifact.masks import MASKS, mask_bits
from dsee.errors import InputError
from dsee.pruning.gates import gate_values
from dsee.steps import history
from dsee.update.embedding import embeddings_to_save

ADAPTER = "adapter"
#: Gates that are being tuned lie beside the base and the adapters, since they belong to no adapter.
GATES = "gates.safetensors"


def save(
    model: Any,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    facts: dict[str, Any] | None = None,
    compact: bool = False,
    base: bool = True,
    max_shard_size: int | str = "50GB",
) -> Path:
    """Write a model as an artifact: whole or not at all.

    A merged model becomes a plain transformers checkpoint, under a ``model_type`` of its own if no stock class could
    rebuild it: its layers were cut, or a split merge left branches. A PeftModel is written as its (pruned) base with
    the update beside it, and loads as a PeftModel again. Masks lie beside the weights, one bit each; the zeros are in
    the weights themselves, so the model runs without the masks.

    Args:
        model: a transformers model or a PeftModel.
        folder: where to; an artifact that is there is replaced, anything else is left alone.
        tokenizer: saved along, so that the folder is complete.
        facts: plain data to keep in the manifest.
        compact: store sparse matrices as bits and values, about half the bytes at 50 % zeros. Then the ``model_type``
            is dsee's own, since stock transformers cannot read such files; therefore not the default.
        base: False leaves the base's weights out of a PeftModel's folder: the updates, the masks and fingerprints of
            the base's tensors alone. Loaded by ``dsee.load(folder, base=model)``.
        max_shard_size: of a file with weights, as for transformers' ``save_pretrained``.

    Returns:
        The folder.

    Raises:
        InputError: not a transformers model, one with a merged update or with weights where its masks say zero, facts
            that JSON cannot hold, a folder that holds an export of another kind, or ``base=False`` of a model that
            is not a PeftModel or has trained more of its base than whole modules.
        ArtifactError: the folder could not be written; what was there before is untouched.
    """
    inner = _check(model, facts, base=base)
    masks, target = mask_bits(inner), Path(folder)
    adapted = inner is not model
    refuse_other_kind(target, ("model", "adapted") if base else ("update",))
    with whole_folder(target, check=verify, owned=owned_entries) as writing:
        if base:
            written = write_base(inner, writing, masks, compact=compact, max_shard_size=max_shard_size)
        else:
            written = write_fingerprint(inner, writing)
        left = {path: bits for path, bits in masks.items() if path not in written.masks}
        if left:
            save_file(left, writing / MASKS)
        if adapted:
            model.save_pretrained(writing / ADAPTER, save_embedding_layers=embeddings_to_save(model))
            _tidy_adapters(writing / ADAPTER)
        if gates := gate_values(model):
            save_file(gates, writing / GATES)
        if tokenizer is not None:
            tokenizer.save_pretrained(writing)
        kind: Kind = "update" if not base else "adapted" if adapted else "model"
        _describe(model, writing, kind, written, facts or {})
    return target


def _check(model: Any, facts: dict[str, Any] | None, *, base: bool) -> Any:
    """Refuse what would not come back; return the transformers model."""
    inner = plain_model(model)
    if not hasattr(inner, "save_pretrained") or not hasattr(inner, "config"):
        raise InputError(f"save: a {type(model).__name__} is not a transformers model.")
    # LoRA's too: a base that holds its update already would get it twice when loaded
    if any(isinstance(module, BaseTunerLayer) and module.merged for module in inner.modules()):
        raise InputError(
            "save: an update is merged into the base. Use dsee.merge(model), or model.unmerge_adapter() first."
        )
    if not base:
        check_separable(model)
    if inner is not model:
        _check_patterns(model)
    _check_facts(facts)
    return inner


def _describe(model: Any, folder: Path, kind: Kind, written: Written, facts: dict[str, Any]) -> None:
    """Write the card, and the manifest last of all."""
    steps = history(model)
    text = card(plain_model(model), kind, written.model_type, steps, written.structure)
    (folder / "README.md").write_text(text, encoding="utf-8")
    manifest = Manifest(kind=kind, format=written.format, history=steps, structure=written.structure, facts=facts)
    if kind != "model":
        manifest.adapters, manifest.active = list(model.peft_config), list(model.active_adapters)
        if any(getattr(config, "masked", False) for config in model.peft_config.values()):
            # an older release would read over this setting, and add what is to be masked
            manifest.format = FORMAT
    write_manifest(folder, manifest)


def _check_patterns(model: Any) -> None:
    for name, config in model.peft_config.items():
        if slow := slow_patterns(vars(config)):
            raise InputError(
                f"save: adapter {name!r}: matching {slow[0][:80]!r} could take for ever, so no folder with it would be "
                "loaded. Name the modules in a list, or use fewer repetitions."
            )


def _check_facts(facts: dict[str, Any] | None) -> None:
    try:
        Manifest(kind="model", facts=facts or {}).model_dump(mode="json")
    except ValueError as error:
        raise InputError(f"save: facts have to be plain data that JSON can hold ({error}).") from error


def _tidy_adapters(folder: Path) -> None:
    """Take out of PEFT's files what differs from one save to the next."""
    for path in folder.rglob("README.md"):
        # a form to fill in; ours says what the model is
        path.unlink()
    for path in folder.rglob("adapter_config.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        # where the base lay on this machine; it lies one folder up
        content["base_model_name_or_path"] = None
        if content.get("modules_to_save"):
            # PEFT adds the task head once more at each load
            content["modules_to_save"] = list(dict.fromkeys(content["modules_to_save"]))
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
