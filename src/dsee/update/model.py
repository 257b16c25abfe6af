"""The tuner that PEFT drives: it puts an update on each target layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from dsee import architectures
from dsee.errors import ArtifactError, InputError, OrderError, listed, nearest
from dsee.masks import get_mask, set_mask
from dsee.update.bake import bake_masks
from dsee.update.bases import refuse_recomputed
from dsee.update.config import DseeConfig
from dsee.update.embedding import DseeEmbedding, check_embedding
from dsee.update.fused import resolve
from dsee.update.layer import GATE, DseeLayer, DseeLinear, refuse_gated, update_layers
from dsee.update.masked import sparse_masks
from dsee.update.positions import check_names, fits
from dsee.update.sparse_delta import SparseDelta
from dsee.update.targets import check_targets, default_targets_missing, spare_full_modules


class DseeModel(BaseTuner):
    """Wraps a model's target layers in :class:`DseeLinear` and :class:`DseeEmbedding`."""

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

    def _prepare_adapter_config(self, peft_config: DseeConfig, model_config: dict[str, Any]) -> DseeConfig:
        """Fill in the family's default targets, or name the layers there are."""
        model_type = str(model_config.get("model_type"))
        if peft_config.target_modules is None and model_type not in self.target_module_mapping:
            raise default_targets_missing(model_type, self.model)
        prepared: DseeConfig = super()._prepare_adapter_config(peft_config, model_config)
        return prepared

    def _prepare_model(self, peft_config: DseeConfig, model: nn.Module) -> None:
        """Bake masks in where that is wished, settle what is fused, and refuse targets that fit no layer."""
        if peft_config.bake_masks:
            bake_masks(model)
        peft_config.fused_parts = resolve(peft_config.fused_parts, model)
        targets = peft_config.target_modules
        if isinstance(targets, str) and targets.lower() == "all-linear":
            spare_full_modules(peft_config, model)
        elif targets != DUMMY_TARGET_MODULES:
            check_targets(targets, model)

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
        refuse_gated(target, current_key, "an update around it")
        kind = DseeLinear
        if isinstance(base, nn.Embedding):
            check_embedding(base, current_key, self.model)
            kind = DseeEmbedding
        layer = kind(target, adapter_name, peft_config, current_key, self.model)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        """Gates are trained whichever adapter comes or goes."""
        gates = [m._parameters[GATE] for m in model.modules() if isinstance(m._parameters.get(GATE), nn.Parameter)]
        states = [(gate, gate.requires_grad) for gate in gates if gate is not None]
        super()._mark_only_adapters_as_trainable(model)
        for gate, trained in states:
            gate.requires_grad_(trained)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to throw gates away with the layers they sit on."""
        for name, layer in update_layers(self.model):
            refuse_gated(layer, name, "unloading the update")
        return super()._unload_and_optionally_merge(*args, **kwargs)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Warn, as PEFT does for its own patterns, of an ``n_sparse_pattern`` that fits no matrix."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        names = [name for name, layer in update_layers(model) if adapter_name in layer.dsee_scaling]
        config = self.peft_config[adapter_name]
        if config.masked:
            hold_to_zeros(model, adapter_name)
        if not config.support_stored:
            check_names(config.positions, names)
        pattern = config.n_sparse_pattern
        unmatched = sorted(key for key in pattern if not fits(key, names))
        if unmatched:
            warnings.warn(
                f"The following n_sparse_pattern keys did not match any targeted module and were ignored: {unmatched}.",
                RuntimeWarning,
                stacklevel=2,
            )

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: DseeConfig, adapter_name: str, *args: Any, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Refuse to save an update whose support was never chosen or loaded: the file would be of no use."""
        for name, layer in update_layers(model):
            if adapter_name in layer.dsee_S and not layer.dsee_S[adapter_name].placed:
                raise OrderError(f"{name}: {layer.dsee_S[adapter_name].missing}")
        found: dict[str, torch.Tensor] = super()._get_adapter_state_dict(model, config, adapter_name, *args, **kwargs)
        return found

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


def hold_to_zeros(model: nn.Module, adapter_name: str) -> None:
    """Take the zeros of a base that came with them for its masks, as a masked merge would.

    Args:
        model: the model with the adapter on it.
        adapter_name: one that keeps to masks.
    """
    layers = [(name, layer) for name, layer in update_layers(model) if layer.has_update(adapter_name)]
    masks = sparse_masks(layers)
    for name, layer in layers:
        # a matrix that is all zero was made so, not pruned
        if name in masks and get_mask(layer) is None and bool(masks[name].any()):
            set_mask(layer, masks[name])


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
