"""``dsee.export_onnx``: an ONNX folder that runs with onnxruntime and tokenizers alone, checked before it is kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from dsee.artifact.atomic import whole_folder
from dsee.artifact.manifest import Manifest, owned_entries, refuse_other_kind, verify, write_manifest
from dsee.errors import InputError, MissingExtraError, OrderError
from dsee.measure.sample import longest_input, sample_inputs
from dsee.modes import evaluating
from dsee.runtime.answers import kind_of
from dsee.runtime.onnx_cache import POSITIONS
from dsee.runtime.onnx_card import card
from dsee.runtime.onnx_model import LABELS, MODEL, TOKENIZER, OnnxModel
from dsee.runtime.onnx_parity import check_parity
from dsee.runtime.onnx_trace import OPSET, TRACED, cached_layers, graph_inputs, trace
from dsee.steps import history
from dsee.update.layer import update_layers

Quantize = Literal["int8"]
#: Gives figures of an export on a task, by their names.
Evaluate = Callable[[OnnxModel], Mapping[str, float]]


def export_onnx(
    model: Any,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    quantize: Quantize | None = None,
    max_length: int | None = None,
    tolerance: float | None = None,
    evaluate: Evaluate | None = None,
    original: Mapping[str, float] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Export a merged model with free batch size and lengths: an encoder, a decoder, or both.

    The folder holds ``model.onnx``, ``tokenizer.json``, ``labels.json``, a manifest and a card whose code runs.

    Args:
        model: a transformers model with logits; merge a PeftModel first. The graph of a decoder that writes takes and
            gives keys and values, so that a step reads one token; an encoder-decoder's reads everything again.
        folder: where to; written whole or not at all.
        tokenizer: a fast tokenizer, stored with truncation and padding switched on.
        quantize: "int8" for dynamic quantisation, per channel and with reduced range (full range saturates on AVX2).
        max_length: longest input in tokens; the tokenizer's or the model's own by default.
        tolerance: largest error of the logits allowed, relative to their spread; by default 1e-4 in fp32 and 0.5 in
            int8, where the task metric has the last word.
        evaluate: asked for the task's figures of the finished export, which its card and manifest then show.
        original: the same figures of the model itself, to stand beside them.
        facts: what else the manifest is to say, as plain data.

    Returns:
        The folder.

    Raises:
        OrderError: the model still carries an update.
        InputError: no logits, weights that are not fp32, an unknown ``quantize``, a ``max_length`` that the model
            cannot take, a slow tokenizer, or a folder that holds a model.
        ExportError: the export's logits are not the model's.
        MissingExtraError: onnx, onnxruntime or onnxscript is not installed.
        ArtifactError: the folder could not be written.
    """
    if update_layers(model):
        raise OrderError("export_onnx: the model still carries an update. Call dsee.merge(model) first.")
    if quantize not in (None, "int8"):
        raise InputError(f"quantize={quantize!r} is unknown. Use None for fp32 or 'int8'.")
    _require()
    _check_model(model)
    target = Path(folder)
    refuse_other_kind(target, ("onnx",))
    limit = _limit(model, tokenizer, max_length)
    with whole_folder(target, check=verify, owned=owned_entries) as writing:
        names = graph_inputs(model, tokenizer)
        trace(model, writing / MODEL, names)
        if quantize:
            _quantize(writing / MODEL)
        if tokenizer is not None:
            _write_tokenizer(tokenizer, writing / TOKENIZER, limit)
        described = _described(model, limit, cached_layers(model) if POSITIONS in names else 0)
        (writing / LABELS).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        allowed = tolerance if tolerance is not None else 0.5 if quantize else 1e-4
        error = check_parity(model, writing / MODEL, limit, allowed)
        found = {"precision": quantize or "fp32", "opset": OPSET, "logit_error": error, "max_length": limit}
        found |= {"weight_bytes": (writing / MODEL).stat().st_size}
        structure = getattr(model.config, "dsee_structure", None)
        manifest = Manifest(kind="onnx", history=history(model), structure=structure, facts={**(facts or {}), **found})
        manifest.facts |= _figures(writing, manifest, evaluate, original)
        text = card(type(model).__name__, manifest.facts, described, names, tokenizer is not None)
        (writing / "README.md").write_text(text, encoding="utf-8")
        write_manifest(writing, manifest)
    return target


def _figures(
    writing: Path, manifest: Manifest, evaluate: Evaluate | None, original: Mapping[str, float] | None
) -> dict[str, Any]:
    """What the finished export is worth on a task, beside the model it was made from."""
    if evaluate is None:
        return {}
    # asked like any user of the folder would ask it
    write_manifest(writing, manifest)
    found = {"test": dict(evaluate(OnnxModel(writing)))}
    return found | ({"original": dict(original)} if original else {})


def _described(model: Any, limit: int, layers: int) -> dict[str, Any]:
    """What running has to know: the labels, or what writing takes."""
    described = {"labels": _labels(model), "vocab_size": int(model.config.vocab_size), "max_length": limit}
    if not model.can_generate():
        return described | {"kind": kind_of(model.config)}
    kept = {"cache": layers} if layers else {}
    return described | {"generation": _generation(model) | {"positions": longest_input(model)} | kept}


def _require() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        try:
            __import__(name)
        except ImportError as error:
            raise MissingExtraError("Exporting to ONNX", "onnx") from error


def _check_model(model: Any) -> None:
    """Refuse in a moment what would fail after a minute of tracing, and with less to say."""
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()}
    if kinds != {"float32"}:
        raise InputError(f"export_onnx: the weights are {', '.join(sorted(kinds))}. Export model.float() instead.")
    with evaluating(model), torch.inference_mode():
        output = model(**sample_inputs(model, *TRACED))
    if "logits" not in output:
        raise InputError(f"export_onnx: {type(model).__name__} returns no logits. Export a model with a task head.")


def _limit(model: Any, tokenizer: Any, max_length: int | None) -> int:
    longest = longest_input(model)
    if max_length is not None and not 1 <= max_length <= longest:
        raise InputError(f"max_length={max_length} is out of range: this model takes 1 to {longest} tokens.")
    limit = longest if max_length is None else max_length
    return limit if tokenizer is None else min(limit, int(tokenizer.model_max_length))


def _labels(model: Any) -> list[str]:
    names = getattr(model.config, "id2label", None) or {}
    return [str(names[index]) for index in sorted(names, key=int)]


def _generation(model: Any) -> dict[str, Any]:
    """The tokens that end a text, and what a decoder starts with."""
    settings = model.generation_config
    ends = settings.eos_token_id
    ends = [] if ends is None else [int(end) for end in ends] if isinstance(ends, list) else [int(ends)]
    return {"end": ends, "start": settings.decoder_start_token_id if model.config.is_encoder_decoder else None}


def _quantize(path: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    prepared, small = path.with_suffix(".prepared"), path.with_suffix(".int8")
    level = logging.getLogger().level
    # the quantiser advises a preparation step that this one replaces
    logging.getLogger().setLevel(logging.ERROR)
    try:
        graph = onnx.load(str(path))
        # shapes noted by the exporter stay behind when the quantiser reorders products, and then contradict its own
        del graph.graph.value_info[:]
        onnx.save(graph, str(prepared))
        quantize_dynamic(str(prepared), str(small), weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    finally:
        logging.getLogger().setLevel(level)
        prepared.unlink(missing_ok=True)
    small.replace(path)


def _write_tokenizer(tokenizer: Any, path: Path, limit: int) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"{type(tokenizer).__name__} is not a fast tokenizer; load it with AutoTokenizer(use_fast=True)."
        )
    from tokenizers import Tokenizer

    stored = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    stored.enable_truncation(limit)
    stored.enable_padding(pad_id=tokenizer.pad_token_id or 0, pad_token=tokenizer.pad_token or "[PAD]")
    stored.save(str(path))
