"""What an update can sit on: Linear and GPT-2's Conv1D, plain or quantised, and Embedding.

Quantised weights are read and written through PEFT's own backends, so what PEFT can merge, an update can.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.utils.quantization_utils import (
    QuantizationBackend,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from dsee.errors import InputError, OrderError


def linear_shape(base: nn.Module) -> tuple[int, int]:
    """Return (out, in) of a Linear or a Conv1D, (vocabulary, width) of an Embedding: the shape of its U V.

    Raises:
        InputError: the module is none of them. An Embedding that scales what it looks up is another class.
    """
    if isinstance(base, nn.Linear):
        return base.out_features, base.in_features
    if isinstance(base, Conv1D):
        return base.weight.shape[1], base.weight.shape[0]
    if type(base) is nn.Embedding:
        return base.num_embeddings, base.embedding_dim
    raise InputError(
        f"target_modules names a {type(base).__name__}; an update goes on Linear, Conv1D and Embedding layers only. "
        "Leave that name out of target_modules or put it into exclude_modules."
    )


def refuse_recomputed(base: nn.Module, key: str) -> None:
    """A weight recomputed at each forward would swallow a merge or a cut without a word.

    Args:
        base: a bare linear.
        key: its path in the model, for the message.

    Raises:
        InputError: its weight is masked by ``torch.nn.utils.prune``, normed or parametrized.
    """
    if isinstance(base, (nn.Linear, Conv1D, nn.Embedding)) and "weight" not in base._parameters:
        raise InputError(
            f"{key}: its weight is recomputed at every call (torch.nn.utils.prune or a parametrization), so a change "
            "would be lost. Make it permanent first: bake_masks=True in the configuration or dsee.bake_masks(model); "
            "for an older weight norm or spectral norm, torch.nn.utils.remove_weight_norm(module) or "
            "torch.nn.utils.remove_spectral_norm(module)."
        )


def is_quantised(base: nn.Module) -> bool:
    """Whether a linear keeps its weight in fewer bits than it computes with.

    Args:
        base: a bare linear.
    """
    weight: Any = base._parameters.get("weight")
    if weight is None:
        return False
    # bitsandbytes' weights are int8 or packed uint8; torchao's pose as float
    return not weight.is_floating_point() or _of_torchao(weight)


def _of_torchao(weight: Any) -> bool:
    return type(weight).__module__.partition(".")[0] == "torchao"


def quantisation_of(base: nn.Module, model: nn.Module | None = None) -> QuantizationBackend | None:
    """Return PEFT's way to read and write a quantised weight; None for a plain one, or where PEFT knows none.

    Args:
        base: a bare linear.
        model: the model it belongs to, whose quantisation settings torchao needs in order to quantise again.
    """
    if not is_quantised(base):
        return None
    try:
        return resolve_quantization_backend(base, **(get_quantization_kwargs(model) if model is not None else {}))
    except ValueError:
        # PEFT's word for a torchao weight whose settings are nowhere to be found
        return None


def read_weight(base: Any, backend: QuantizationBackend | None = None) -> torch.Tensor:
    """Return a linear's weight in its own orientation, dequantised if need be; a view where it is plain.

    Args:
        base: a bare linear.
        backend: what :func:`quantisation_of` returned for it.

    Raises:
        InputError: a quantised weight that cannot be read.
    """
    if not is_quantised(base):
        plain: torch.Tensor = base.weight.data
        return plain
    if getattr(getattr(base.weight, "quant_state", None), "packing_format_for_cpu", False):
        # bitsandbytes 0.50 reads it back in another order
        raise InputError(
            f"The 4-bit weight of a {type(base).__name__} cannot be read any more: bitsandbytes has rearranged it for "
            "this CPU (AVX-512 with bf16) at the first call in eval mode. Load the model again and merge or choose a "
            "support before it is called in eval mode, or load it without quantisation."
        )
    backend = quantisation_of(base) if backend is None else backend
    try:
        if backend is not None:
            weight: torch.Tensor = backend.get_base_weight(base)
        elif _of_torchao(base.weight):
            weight = base.weight.dequantize()
        else:
            raise TypeError("neither PEFT nor the weight itself says how")
    except (TypeError, NotImplementedError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"The quantised weight of a {type(base).__name__} cannot be read ({error}). Load the model without "
            "quantisation."
        ) from error
    return weight.detach()


def check_writable(base: nn.Module, backend: QuantizationBackend | None, task: str) -> None:
    """Make sure that a changed weight can be put back.

    Args:
        base: a bare linear.
        backend: what :func:`quantisation_of` returned for it.
        task: what for, as the message begins.

    Raises:
        OrderError: it is quantised in a way that cannot be done again.
    """
    if is_quantised(base) and (backend is None or not backend.supports_merge):
        kind = type(base._parameters["weight"]).__name__
        raise OrderError(
            f"{task}: a {type(base).__name__} with a quantised weight ({kind}) cannot be quantised again: its settings "
            "are not in model.hf_quantizer. Load the base without quantisation, merge, and quantise the result; or "
            "load it with quantization_config so that the settings are known."
        )
