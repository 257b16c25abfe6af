"""The tuner that PEFT drives: it puts an update on each target layer."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from dsee import architectures
from dsee.errors import ArtifactError, InputError, listed, nearest
from dsee.update.config import DseeConfig
from dsee.update.bases import refuse_recomputed
from dsee.update.layer import DseeLayer, DseeLinear, update_layers
from dsee.update.sparse_delta import SparseDelta


class DseeModel(BaseTuner):
    """Wraps a model's target layers in :class:`DseeLinear`."""

    prefix: str = "dsee_"
    tuner_layer_cls = DseeLayer

    @property
    def target_module_mapping(self) -> dict[str, list[str]]:
        """Default targets by ``model_type``; asked each time, so that a family registered later has its own."""
        return dict(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING) | architectures.default_targets()

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, _child: nn.Module) -> None:
        """Put a module in another's place, and no more.

        PEFT's own goes on to copy ``weight`` from one to the other, which the task heads of RoBERTa and ELECTRA, put
        back when an update is merged, do not have. An update moves to its base's device when it is made.
        """
        setattr(parent, child_name, new_module)

    def _prepare_model(self, peft_config: DseeConfig, model: nn.Module) -> None:
        """Refuse a target name that fits no layer, which PEFT passes over in silence if another one fits."""
        targets = peft_config.target_modules
        if isinstance(targets, str) and targets.lower() == "all-linear":
            _spare_full_modules(peft_config, model)
        if not isinstance(targets, (list, set, tuple)):
            return
        names = [name for name, _ in model.named_modules() if name]
        for target in sorted(targets):
            if not any(name == target or name.endswith(f".{target}") for name in names):
                leaves = _linear_names(model)
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
        refuse_recomputed(base, current_key)
        layer = DseeLinear(target, adapter_name, peft_config, current_key, self.model)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Warn, as PEFT does for its own patterns, of an ``n_sparse_pattern`` that fits no matrix."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        names = [name for name, layer in update_layers(model) if adapter_name in layer.dsee_scaling]
        pattern = self.peft_config[adapter_name].n_sparse_pattern
        unmatched = sorted(key for key in pattern if not any(re.match(rf"(.*\.)?({key})$", name) for name in names))
        if unmatched:
            warnings.warn(
                f"The following n_sparse_pattern keys did not match any targeted module and were ignored: {unmatched}.",
                RuntimeWarning,
                stacklevel=2,
            )

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
        hooks += [
            module.register_forward_hook(partial(_head_of_each_row, names), with_kwargs=True)
            for module in self.modules()
            if isinstance(module, ModulesToSaveWrapper)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _head_of_each_row(
    names: list[str], wrapper: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor
) -> torch.Tensor:
    """Answer each row by the head of its own adapter; PEFT's wrapper does so for single layers only.

    Heads are small, so that each sees the whole batch; one that has no such adapter answers as the base does.
    """
    mixed = output.clone()
    for name in set(names):
        trained = wrapper.modules_to_save
        rows = torch.tensor([i for i, n in enumerate(names) if n == name], device=output.device)
        head = trained[name] if name in trained else wrapper.original_module  # noqa: SIM401 - a ModuleDict has no get
        mixed[rows] = head(*args, **kwargs)[rows]
    return mixed


def _spare_full_modules(config: DseeConfig, model: nn.Module) -> None:
    """Keep "all-linear" off what ``modules_to_save`` trains in full: PEFT matches that by the end of the name."""
    full = tuple(config.modules_to_save or ())
    spared = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.endswith(full)}
    if full and spared and not isinstance(config.exclude_modules, str):
        config.exclude_modules = set(config.exclude_modules or ()) | spared


def _linear_names(model: nn.Module) -> set[str]:
    """Last names of the model's own linears, not of the parts that PEFT has put into them."""
    wrappers = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    )
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D, DseeLayer)) and not name.startswith(wrappers)
    }
