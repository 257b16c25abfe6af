"""From a torch model to a graph with free batch size and lengths."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from dsee.architectures.inputs import takes_token_types
from dsee.measure.sample import sample_inputs
from dsee.modes import evaluating
from dsee.runtime.onnx_cache import PAST, POSITIONS, PRESENT, cache_names
from dsee.runtime.onnx_model import DECODER, TYPES

OPSET = 18
#: Traced with this shape; batch and length stay free. Sizes of 1 would be taken for constants.
TRACED = (2, 16)
#: Of these, so many are in the cache, where there is one; no two lengths are equal, or they would be taken for one.
REMEMBERED = 9


def graph_inputs(model: Any, tokenizer: Any) -> list[str]:
    """Return what a model is fed: the second sentence of a pair is marked, if its tokenizer marks it in tuning.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer, or None.
    """
    names = ["input_ids", "attention_mask"]
    if model.config.is_encoder_decoder and model.can_generate():
        return [*names, DECODER]
    if cached_layers(model):
        return [*names, POSITIONS]
    marked = TYPES in getattr(tokenizer, "model_input_names", []) and takes_token_types(model.config)
    return [*names, TYPES] if marked else names


def cached_layers(model: Any) -> int:
    """Return how many layers keep keys and values, (batch, heads, tokens, dim) each; 0 if the graph gets no cache.

    Encoder-decoders get none, nor does a decoder that keeps something else, or takes no positions.

    Args:
        model: a transformers model.
    """
    takes = signature(model.forward).parameters
    if not model.can_generate() or model.config.is_encoder_decoder or not {POSITIONS, "past_key_values"} <= set(takes):
        return 0
    return len(_kept(model, sample_inputs(model, 1, 2))) // 2


def _kept(model: Any, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Keys and values of each layer after reading something; none if they are not of the ordinary kind."""
    with evaluating(model), torch.no_grad():
        cache = model(**inputs, use_cache=True).get("past_key_values")
    found = [getattr(layer, part, None) for layer in getattr(cache, "layers", []) for part in ("keys", "values")]
    tensors = [part for part in found if isinstance(part, torch.Tensor) and part.dim() == 4]
    return tensors if len(tensors) == len(found) else []


class _Logits(torch.nn.Module):
    """The model as a function of its inputs."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names
        # what a decoder keeps for its next step is no part of the graph
        self.more = {"use_cache": False} if "use_cache" in signature(model.forward).parameters else {}

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(**dict(zip(self.names, inputs, strict=True)), **self.more)["logits"]
        return logits


class _Steps(torch.nn.Module):
    """A decoder as a function of its inputs and what it has computed before; gives logits and the same for later."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        from transformers import DynamicCache

        # without the config: layers with a sliding window keep all, and their mask does the sliding
        cache, past = DynamicCache(), inputs[len(self.names) :]
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        given = dict(zip(self.names, inputs, strict=False))
        logits = self.model(**given, past_key_values=cache, use_cache=True)["logits"]
        return (logits, *(part for layer in cache.layers for part in (layer.keys, layer.values)))


def trace(model: Any, path: Path, names: list[str]) -> None:
    """Write the graph of a model: logits from token ids, and keys and values where ``names`` has positions.

    Args:
        model: a transformers model; its mode is restored.
        path: the file.
        names: from :func:`graph_inputs`.
    """
    if POSITIONS in names:
        _trace_steps(model, path, names)
        return
    sample = sample_inputs(model, *TRACED)
    if DECODER in names:
        # of a length of its own, or the two would be taken for one
        sample[DECODER] = sample[DECODER][:, 1:]
    inputs = tuple(sample.get(name, torch.ones_like(sample["input_ids"])) for name in names)
    batch, lengths = torch.export.Dim("batch"), {DECODER: torch.export.Dim("written")}
    read = torch.export.Dim("sequence")
    shapes = tuple({0: batch, 1: lengths.get(name, read)} for name in names)
    _export(_Logits(model, names), inputs, path, names, ["logits"], shapes)


def _trace_steps(model: Any, path: Path, names: list[str]) -> None:
    """One graph for reading a prompt, with nothing in its cache, and for each step after it."""
    sample = sample_inputs(model, *TRACED)
    kept = _kept(model, sample_inputs(model, TRACED[0], 2))
    past = [part.new_zeros(*part.shape[:2], REMEMBERED, part.shape[3]) for part in kept]
    sample["input_ids"] = sample["input_ids"][:, REMEMBERED:]
    sample[POSITIONS] = torch.arange(REMEMBERED, TRACED[1], device=sample["input_ids"].device).repeat(TRACED[0], 1)
    free = torch.export.Dim.DYNAMIC
    shapes = (*({0: free, 1: free} for _ in names), *({0: free, 2: free} for _ in past))
    layers = len(past) // 2
    inputs = (*(sample[name] for name in names), *past)
    given, outputs = [*names, *cache_names(layers, PAST)], ["logits", *cache_names(layers, PRESENT)]
    _export(_Steps(model, names), inputs, path, given, outputs, shapes)
    _name_sizes(path)


def _export(
    function: torch.nn.Module, inputs: tuple[Any, ...], path: Path, names: list[str], outputs: list[str], shapes: Any
) -> None:
    with _quiet(), evaluating(function), torch.no_grad():
        torch.onnx.export(
            function.eval(),
            inputs,
            str(path),
            input_names=names,
            output_names=outputs,
            dynamic_shapes=(shapes,),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
        )
    _strip(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports progress and other people's deprecations; failures still come as exceptions."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            # progress and other people's deprecations
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)


def _strip(path: Path) -> None:
    """Take out the stack trace noted at every node: paths of this machine, and most of a small file."""
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    for part in [*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph, model]:
        del part.metadata_props[:]
        part.ClearField("doc_string")
    onnx.save(model, str(path))


def _name_sizes(path: Path) -> None:
    """Give free sizes names that say what they are; the exporter's own are one for each place, "s70" for example."""
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    # shapes in between are told in the exporter's names, and can do without
    del graph.value_info[:]
    for entry in [*graph.input, *graph.output]:
        remembered = entry.name.startswith((PAST, PRESENT))
        last = {"attention_mask": "all_tokens"}.get(entry.name, "tokens")
        last = "all_tokens" if entry.name.startswith(PRESENT) else "past_tokens" if remembered else last
        for place, size in enumerate(entry.type.tensor_type.shape.dim):
            if size.dim_param:
                size.dim_param = "batch" if place == 0 else last
    onnx.save(model, str(path))
