"""``dsee.optimize``: per layer the fastest way to compute it, by timing each on the user's machine."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from dsee.errors import InputError, OrderError
from dsee.kernels import from_kernels, library, on_kernels, to_kernels, why_not
from dsee.kernels.linear import CLASSES, PLAIN, STATE, Packed, Way
from dsee.kernels.two_four import TWO_FOUR, WAY, Compressed, from_two_four, missing, to_two_four, unfit
from dsee.measure.sample import longest_input, sample_inputs
from dsee.modes import evaluating
from dsee.runtime import own_attention
from dsee.runtime.activations import fuse, unfuse
from dsee.runtime.agreement import MARGIN, agree, all_alike, encoder_linears
from dsee.runtime.choices import DENSE, Choice, Choices
from dsee.runtime.one_call_attention import fuse_attention, unfuse_attention
from dsee.runtime.pairs import join_pairs, part_pairs
from dsee.runtime.residual_norm import fuse_norms, unfuse_norms
from dsee.runtime.side_kernels import register
from dsee.runtime.whole_encoder import fuse_encoders, unfuse_encoders

#: Ways that leave zeros out.
SPARSE: tuple[Way, ...] = ("blocks", "weights")
#: Attention's share of a model is small, and so is what the whole has to win by it.
ATTENTION_MARGIN = 0.01
#: Stored numbers over all from which on no kernel can win by itself.
DENSEST = 0.9
#: Tokens of a sample up to which an encoder without zeros is tried too: an encoder in one call has none of what each
#: operation of PyTorch's costs, nor of the passes between products. For more, PyTorch's dense product is faster.
FEW = 1024
#: A time that falls by less than this share has settled.
SETTLED = 0.01
#: A race ends after so many times the rounds asked for, settled or not.
MOST_ROUNDS = 5
#: How often the two ways of attention take turns.
ATTENTION_TURNS = 6


def optimize(
    model: nn.Module, sample: Mapping[str, torch.Tensor] | None = None, *, rounds: int = 7, int8: bool = False
) -> Choices:
    """Let each sparse linear layer run the fastest way there is here, in place; outputs stay equal to rounding.

    Dense and sparse products are timed in turns on what each layer sees of the sample batch: on CPUs those of our
    kernels, for float32; on NVIDIA GPUs of compute capability 8.0 and above torch's 2:4, for float16 and bfloat16 and
    masks that keep two of four. A layer leaves the dense way only for a gain of 3 %; attention goes to the kernels
    where transformers leaves it to torch's sdpa and the whole model is 1 % faster so; layers that could be one call
    together are tried so as well, dense ones among them, on samples of up to 1,024 tokens even all of them; and if the
    whole model gained nothing all of it is undone. Class, parameters, files and training of the model do not change;
    under gradients every layer computes densely.

    Args:
        model: a transformers model, with or without PEFT around it.
        sample: a batch like those to come; the choice depends on its size. None: one sentence of 128 tokens, or as
            many as the model takes.
        rounds: timed calls of each way; more, up to five times as many, while the shortest times still fall.
        int8: let layers, dense ones too, round weights and activations to 8-bit integers where that is faster. This
            changes outputs by more than rounding: see ``Choices.deviation``, and measure your metric again.

    Returns:
        What was chosen; ``undo()`` takes it back.

    Raises:
        InputError: ``rounds`` is less than 1, or the model cannot take the sample.
        OrderError: the model is optimized already.
    """
    if rounds < 1:
        raise InputError(f"optimize: rounds={rounds} has to be at least 1.")
    base = own_attention.base_of(model)
    if on_kernels(model) or (base is not None and base.config._attn_implementation == own_attention.NAME):
        raise OrderError(
            "optimize: this model runs on the kernels already. Call undo() on what optimize returned first."
        )
    inputs = dict(sample) if sample is not None else sample_inputs(model, 1, min(128, longest_input(model)))

    found = library()
    register()
    with evaluating(model), torch.inference_mode():
        seen = _seen(model, inputs)
        tokens = max((x.numel() // x.shape[-1] for x in seen.values()), default=0)
        device = next(model.parameters()).device
        choices = Choices([], tokens, _path(device))
        if found is None and device.type == "cpu":
            return choices
        before, outputs = _whole(model, inputs, rounds), _outputs(model, inputs)
        packed: dict[str, Packed | Compressed] = {}
        eight = int8 and found is not None and found.int8
        inside = encoder_linears(model) & seen.keys() if device.type == "cpu" else set()
        anyway = _tried_anyway(model, inside, tokens)
        for name, x in seen.items():
            choice, state = _choose(name, model.get_submodule(name), x, rounds, eight, anyway.get(name, ()))
            choices.layers.append(choice)
            if state is not None:
                packed[name] = state
        agree(model, choices, packed)
        _settle(model, base if device.type == "cpu" else None, inputs, rounds, choices, packed)
        if choices._undo:
            choices.gain = before / _whole(model, inputs, rounds)
        if any(layer.chosen == "int8" for layer in choices.layers):
            choices.deviation = float((_outputs(model, inputs) - outputs).norm() / outputs.norm())
    if choices.gain < 1.0:
        # single layers were faster, the whole was not: noise, or a batch too small to tell
        choices.undo()
        choices.layers = [replace(layer, chosen=DENSE, activation=None) for layer in choices.layers]
        choices.attention = own_attention.STANDARD if choices.attention else ""
        choices.gain, choices.deviation = 1.0, 0.0
        choices.attentions, choices.norms, choices.pairs, choices.encoders = 0, 0, 0, 0
    return choices


def _outputs(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The first tensor that a model returns: logits, or hidden states where there is no head."""
    found = model(**inputs)
    return cast("torch.Tensor", found.logits if "logits" in found else found[0])


def _seen(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The input of each linear layer that could run on the kernels, in the order of their calls."""
    found: dict[str, torch.Tensor] = {}
    hooks = []
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        if type(module) not in CLASSES or not weight.is_floating_point():
            continue

        def keep(_: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
            if args and isinstance(args[0], torch.Tensor) and args[0].numel():
                found.setdefault(name, args[0])

        hooks.append(module.register_forward_pre_hook(keep))
    try:
        model(**inputs)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise InputError(f"optimize: the model cannot take this sample ({error}).") from error
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _path(device: torch.device) -> str:
    if device.type == "cpu":
        found = library()
        return found.path if found else why_not()
    return missing(device) or torch.cuda.get_device_name(device)


def _tried_anyway(model: nn.Module, inside: set[str], tokens: int) -> dict[str, tuple[Way, ...]]:
    """Ways that an encoder's layers without zeros are tried in: dense ones would keep it from being one call."""
    sparse = any(_zeros(model.get_submodule(name)) > 1 - DENSEST for name in inside)
    return dict.fromkeys(inside, SPARSE if sparse else SPARSE[:1] if tokens <= FEW else ())


def _choose(
    name: str, linear: Any, x: torch.Tensor, rounds: int, int8: bool, anyway: tuple[Way, ...]
) -> tuple[Choice, Packed | Compressed | None]:
    """Time a layer on its input; the packed weight of the way that won comes back with it."""
    on_cpu = linear.weight.device.type == "cpu" and linear.weight.dtype == torch.float32
    twins, reason = (_kernel_twins(linear, int8, anyway), None) if on_cpu else _two_four_twin(linear, x)
    density = {kind: 0.5 if kind == WAY else twin.packed().density for kind, twin in twins.items()}
    calls: dict[str, Callable[[], Any]] = {DENSE: partial(linear, x)}
    calls |= {kind: partial(twins[kind], x) for kind in density}
    times = _race(_finished(calls, x.device), rounds) if density else {DENSE: 0.0}
    best = min(times, key=times.__getitem__)
    # one kind throughout lets two layers run in one call, which is worth more than what the clock cannot tell apart
    if best == "weights" and times.get("blocks", float("inf")) < (1 + MARGIN) * times[best]:
        best = "blocks"
    chosen = best if times[best] < (1 - MARGIN) * times[DENSE] else DENSE
    choice = Choice(name, chosen, times, density, reason=reason)
    return choice, None if chosen == DENSE else twins[chosen].__dict__[STATE]


def _zeros(linear: Any) -> float:
    return float((linear.weight == 0).float().mean())


def _kernel_twins(linear: Any, int8: bool, anyway: tuple[Way, ...]) -> dict[str, Any]:
    """The layer on our kernels, by the way; each twin shares everything with it but its class."""
    if library() is None:
        return {}
    sparse = _zeros(linear) > 1 - DENSEST
    twins: dict[str, Any] = {}
    for kind in SPARSE if sparse else anyway:
        twins[kind] = copy.copy(linear)
        to_kernels(twins[kind], kind)
        if sparse and twins[kind].packed().density > DENSEST:
            # zeros of the other kind
            del twins[kind]
    if int8 and type(linear) in PLAIN:
        twins["int8"] = copy.copy(linear)
        to_kernels(twins["int8"], "int8")
    return twins


def _two_four_twin(linear: Any, x: torch.Tensor) -> tuple[dict[str, Any], str | None]:
    """The layer as 2:4, tried once; or why it cannot be."""
    weight = linear.weight
    why = missing(weight.device)
    if why is not None and weight.device.type == "cpu":
        why = f"our kernels take float32; {why}"
    if why is None and type(linear) not in TWO_FOUR:
        why = "2:4 knows no branch beside the weight"
    why = why or unfit(weight if isinstance(linear, nn.Linear) else weight.T)
    if why is not None:
        return {}, why
    twin = copy.copy(linear)
    try:
        to_two_four(twin)
        twin(x)
    except (RuntimeError, NotImplementedError) as error:
        # what a backend takes depends on its version and the GPU
        return {}, f"torch refuses: {str(error).splitlines()[0]}"
    return {WAY: twin}, None


def _finished(calls: Mapping[str, Callable[[], Any]], device: torch.device) -> dict[str, Callable[[], Any]]:
    """Calls that return when the work is done, and not when it is on its way to the GPU."""
    if device.type != "cuda":
        return dict(calls)

    def finished(call: Callable[[], Any]) -> None:
        call()
        torch.cuda.synchronize(device)

    return {name: partial(finished, call) for name, call in calls.items()}


def _race(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Shortest wall time of each call in milliseconds, taken in turns; the shortest is what disturbs least.

    It goes on until no time has fallen for so many rounds: beside other work the first few may all be disturbed.
    """
    times = dict.fromkeys(calls, float("inf"))
    settled = 0
    for round_number in range(MOST_ROUNDS * rounds + 1):
        settled += 1
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            took = 1e3 * (time.perf_counter() - start)
            if not round_number:
                continue
            if took < (1 - SETTLED) * times[name]:
                settled = 0
            times[name] = min(times[name], took)
        if round_number > rounds <= settled:
            break
    return times


def _whole(model: nn.Module, inputs: Mapping[str, torch.Tensor], rounds: int) -> float:
    device = next(model.parameters()).device
    return _race(_finished({"model": lambda: model(**inputs)}, device), rounds)["model"]


def _settle(
    model: nn.Module,
    base: PreTrainedModel | None,
    inputs: Mapping[str, torch.Tensor],
    rounds: int,
    choices: Choices,
    packed: Mapping[str, Packed | Compressed],
) -> None:
    """Apply what was chosen for each layer, or the same way for all of them if as one call that is faster."""
    _apply(model, choices, packed)
    if base is None:
        return
    took = _choose_attention(model, base, inputs, rounds, choices)
    alone, alike = choices.layers, all_alike(model, choices.layers)
    if alike is None:
        return
    choices.undo()
    choices.layers = alike
    before = {each.name: each.chosen for each in alone}
    others = {each.name: Packed(cast("Way", each.chosen)) for each in alike if each.chosen != before[each.name]}
    _apply(model, choices, {**packed, **others})
    together = _choose_attention(model, base, inputs, rounds, choices)
    if not choices.encoders or together > (1 - ATTENTION_MARGIN) * took:
        choices.undo()
        choices.layers = alone
        _apply(model, choices, packed)
        _choose_attention(model, base, inputs, rounds, choices)


def _choose_attention(
    model: nn.Module, base: PreTrainedModel, inputs: Mapping[str, torch.Tensor], rounds: int, choices: Choices
) -> float:
    """Time the whole model with torch's attention and with the kernels', in turns; the better one's time in ms."""
    own_attention.register()
    fused, encoders = fuse_attention(model), fuse_encoders(model)
    ways = (own_attention.STANDARD, own_attention.NAME)
    times = dict.fromkeys(ways, float("inf"))
    for _ in range(ATTENTION_TURNS):
        for way in ways:
            base.set_attn_implementation(way)
            times[way] = min(times[way], _whole(model, inputs, -(-rounds // ATTENTION_TURNS)))
    better = times[own_attention.NAME] < (1 - ATTENTION_MARGIN) * times[own_attention.STANDARD]
    choices.attention = ways[better]
    base.set_attn_implementation(choices.attention)
    choices.attentions, choices.encoders = (len(fused), len(encoders)) if better else (0, 0)
    if not better:
        unfuse_encoders(encoders)
        unfuse_attention(fused)
        return times[own_attention.STANDARD]
    choices._undo.append(partial(unfuse_attention, fused))
    choices._undo.append(partial(unfuse_encoders, encoders))
    choices._undo.append(partial(base.set_attn_implementation, own_attention.STANDARD))
    return times[own_attention.NAME]


def _apply(model: nn.Module, choices: Choices, packed: Mapping[str, Packed | Compressed]) -> None:
    for name, state in packed.items():
        linear = model.get_submodule(name)
        if isinstance(state, Compressed):
            to_two_four(linear, packed=state)
            choices._undo.append(partial(from_two_four, linear))
        else:
            to_kernels(linear, state.kind, packed=state)
            choices._undo.append(partial(from_kernels, linear))
    fused, norms = fuse(model), fuse_norms(model)
    pairs = join_pairs(model)
    choices.norms, choices.pairs = len(norms), len(pairs)
    if fused:
        choices._undo.append(partial(unfuse, fused))
    if norms:
        choices._undo.append(partial(unfuse_norms, norms))
    if pairs:
        choices._undo.append(partial(part_pairs, pairs))
    named = {id(each.linear): each.name for each in fused}
    choices.layers = [
        replace(each, activation=named.get(id(model.get_submodule(each.name)))) for each in choices.layers
    ]
