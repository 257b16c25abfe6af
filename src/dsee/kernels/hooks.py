"""Whether somebody looks at what a module leaves: then it has to be computed as the module computes it."""

from __future__ import annotations

from typing import Any

from torch import nn

try:
    from transformers.utils import output_capturing
except ImportError:  # versions before it asked for no hooks
    output_capturing = None


def watched(module: nn.Module) -> bool:
    """Whether a module has a hook that looks at this call.

    transformers puts hooks on all layers when hidden states or attentions are asked for the first time, and leaves them
    there; in other calls they do nothing.

    Args:
        module: any module.
    """
    if module._forward_pre_hooks:
        return True
    return bool(module._forward_hooks) and not all(_sleeps(hook) for hook in module._forward_hooks.values())


def _sleeps(hook: Any) -> bool:
    named = (getattr(hook, "__module__", ""), getattr(hook, "__name__", ""))
    if output_capturing is None or named != (output_capturing.__name__, "output_capturing_hook"):
        return False
    collector: Any = getattr(output_capturing, "_active_collector", None)
    # in each call it holds what was asked for
    return collector is not None and not collector.get()
