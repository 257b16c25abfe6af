"""The tuner that PEFT drives: it puts an update on each target layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from torch.nn.utils import parametrize

from dsee import architectures
from dsee.errors import ArtifactError, InputError, listed, nearest
from dsee.update.config import DseeConfig
from dsee.update.layer import DseeLayer, DseeLinear
from dsee.update.sparse_delta import SparseDelta


class DseeModel(BaseTuner):
    """Wraps a model's target layers in :class:`DseeLinear`."""

    prefix: str = "dsee_"
    tuner_layer_cls = DseeLayer
    target_module_mapping = dict(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING) | architectures.default_targets()

    def _prepare_model(self, peft_config: DseeConfig, model: nn.Module) -> None:
        """Refuse a target name that fits no layer, which PEFT passes over in silence if another one fits."""
        targets = peft_config.target_modules
        if not isinstance(targets, (list, set, tuple)):
            return
        names = [name for name, _ in model.named_modules() if name]
        for target in sorted(targets):
            if not any(name == target or name.endswith(f".{target}") for name in names):
                leaves = {
                    name.rpartition(".")[2]
                    for name, module in model.named_modules()
                    if isinstance(module, (nn.Linear, DseeLayer)) or type(module).__name__ == "Conv1D"
                }
                raise InputError(
                    f"target_modules: no layer of {type(model).__name__} is called {target!r}."
                    f"{nearest(target, sorted(leaves))} Its linear layers are called {listed(sorted(leaves))}."
                )

    def _create_and_replace(
        self,
        peft_config: DseeConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        if isinstance(target, DseeLinear):
            target.update_layer(adapter_name, peft_config, current_key)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        _refuse_masked_base(base, current_key)
        layer = DseeLinear(target, adapter_name, peft_config, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: DseeConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Let the checkpoint decide each matrix's N, and refuse one made for other shapes."""
        remapped: dict[str, torch.Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        for name, module in model.named_modules():
            if not isinstance(module, SparseDelta) or not name.endswith(f".{adapter_name}"):
                continue
            shape, indices = remapped.get(f"{name}.shape"), remapped.get(f"{name}.indices")
            if shape is None or indices is None:
                continue
            stored = (int(shape[0]), int(shape[1]))
            if stored != (module.out_features, module.in_features):
                raise ArtifactError(
                    f"{name}: the stored update is for a {stored[0]} x {stored[1]} matrix, this base has "
                    f"{module.out_features} x {module.in_features}. Load it on the (pruned) base it was tuned on."
                )
            if indices.numel() != module.n_sparse:
                module.resize(indices.numel())
        return remapped

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **kwargs: Any) -> Iterator[None]:
        """Serve a batch whose rows want different adapters (``adapter_names``); "__base__" is the bare base."""
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        if self.training:
            raise InputError("adapter_names is for inference: call model.eval() first, or train one adapter at a time.")
        unknown = sorted(set(names) - set(self.peft_config) - {"__base__"})
        if unknown:
            raise InputError(
                f"adapter_names: there is no adapter {unknown[0]!r}.{nearest(unknown[0], self.peft_config)} "
                f"Loaded: {listed(sorted(self.peft_config))}."
            )

        def add_names(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, kwargs | {"adapter_names": names}

        hooks = [
            module.register_forward_pre_hook(add_names, with_kwargs=True)
            for module in self.modules()
            if isinstance(module, DseeLinear)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _refuse_masked_base(base: nn.Module, key: str) -> None:
    """A weight recomputed at each forward would swallow a merge without a word."""
    if parametrize.is_parametrized(base) or (hasattr(base, "weight_orig") and hasattr(base, "weight_mask")):
        raise InputError(
            f"{key}: its weight is recomputed at every call (torch.nn.utils.prune or a parametrization), so a merged "
            "update would be lost. Make the pruning permanent first: torch.nn.utils.prune.remove(module, 'weight') or "
            "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')."
        )
