"""A linear layer with an update beside it: y = base(x) + s (U V x + S2 x)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from dsee.errors import ArtifactError, InputError, OrderError
from dsee.masks import get_mask, hold
from dsee.update.bases import check_writable, is_quantised, linear_shape, quantisation_of, read_weight
from dsee.update.config import DseeConfig
from dsee.update.folded import can_fold, has_hooks, worth_folding
from dsee.update.fused import PARTS, FusedUp, parts_of
from dsee.update.masked import (
    can_merge_on_the_fly,
    keeps_to_mask,
    masked_product,
    product_with_merged,
    shifted,
    written_out,
)
from dsee.update.positions import new_sparse
from dsee.update.sparse_delta import SparseDelta
from dsee.update.thin import ThinLinear

#: Name of the parameter on a linear that multiplies its input; see ``dsee.pruning.gates``.
GATE = "input_gate"

#: Spread of V at the start, as in the authors' code; U starts at zero, so that dW does.
V_STD = 0.02


def refuse_gated(module: Any, key: str, step: str) -> None:
    """A gate is applied in front of the outermost module, so wrapping or unwrapping that one would lose it.

    Args:
        module: a linear, bare or with updates.
        key: its path in the model, for the message.
        step: what is about to be done.

    Raises:
        OrderError: its input is gated.
    """
    base = module.get_base_layer() if isinstance(module, DseeLayer) else module
    if GATE in base._parameters:
        raise OrderError(
            f"{key}: {step} would lose the gates on its input. Call dsee.fold_gates(model) first; to tune with gates, "
            "put the update on the model before dsee.add_gates(model)."
        )


class DseeLayer(BaseTunerLayer):
    """What PEFT needs to know of a layer with updates: the names of its parts, by adapter."""

    adapter_layer_names: tuple[str, ...] = ("dsee_U", "dsee_V", "dsee_S")
    other_param_names: tuple[str, ...] = ("dsee_scaling", "dsee_dropout", "dsee_parts", "dsee_masked")

    if TYPE_CHECKING:
        # PEFT's, which mypy would otherwise take for sub-modules
        active_adapters: list[str]
        disable_adapters: bool
        merged: bool
        get_base_layer: Any

        def _cast_input_dtype(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor: ...

    def __init__(self, base_layer: nn.Module, model: nn.Module | None = None) -> None:
        self.base_layer = base_layer
        self.quantization_backend = quantisation_of(self.get_base_layer(), model)
        # Any: a ModuleDict's type forgets what kind of module it holds
        self.dsee_U: Any = nn.ModuleDict()
        self.dsee_V: Any = nn.ModuleDict()
        self.dsee_S: Any = nn.ModuleDict()
        self.dsee_dropout: Any = nn.ModuleDict()
        self.dsee_scaling: dict[str, float] = {}
        self.dsee_parts: dict[str, tuple[int, ...]] = {}
        self.dsee_masked: dict[str, bool] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._unmerged: torch.Tensor | None = None

    @property
    def transposed(self) -> bool:
        """Whether the base stores its weight as (in, out), as GPT-2's Conv1D does."""
        return isinstance(self.get_base_layer(), Conv1D)

    def base_weight(self) -> torch.Tensor:
        """Return W in (out, in) orientation: a view of the base's weight, or a dequantised copy."""
        weight = read_weight(self.get_base_layer(), self.quantization_backend)
        return weight.T if self.transposed else weight

    def update_layer(self, adapter_name: str, config: DseeConfig, key: str) -> None:
        """Give this layer an update of its own, starting at zero.

        Args:
            adapter_name: the adapter's name.
            config: its configuration.
            key: the layer's path in the model, for the ``*_pattern`` fields and the seed.
        """
        out_features, in_features = linear_shape(self.get_base_layer())
        rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern, key), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, key), config.alpha)
        parts = parts_of(config.fused_parts, key, out_features)
        if parts is not None:
            self.dsee_parts[adapter_name] = parts
        self.dsee_scaling[adapter_name] = config.scaling(rank, alpha)
        self.dsee_masked[adapter_name] = config.masked
        self.dsee_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        if rank:
            low = nn.Linear(in_features, rank * len(parts or [0]), bias=False)
            up = self._new_up(rank, out_features, parts)
            nn.init.normal_(low.weight, std=V_STD)
            if config.init_weights:
                nn.init.zeros_(up.weight)
            self.dsee_V[adapter_name], self.dsee_U[adapter_name] = low, up
        sparse = new_sparse(self, config, rank, key, parts)
        if sparse is not None:
            if not config.init_weights and sparse.placed:
                nn.init.normal_(sparse.weight, std=V_STD)
            self.dsee_S[adapter_name] = sparse
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _new_up(self, rank: int, out_features: int, parts: tuple[int, ...] | None) -> Any:
        """U, with random values, which the caller sets to zero."""
        return FusedUp(rank, out_features, parts) if parts else ThinLinear(rank, out_features, bias=False)

    def has_update(self, adapter_name: str) -> bool:
        """Whether the adapter has a part on this layer: a pattern or a cut can leave it with neither."""
        return adapter_name in self.dsee_U or adapter_name in self.dsee_S

    def n_sparse_of(self, adapter_name: str) -> int | list[int]:
        """Return the actual N, as ``n_sparse_pattern`` states it: one for each part of a fused layer if they differ.

        Args:
            adapter_name: the adapter's name.
        """
        if adapter_name not in self.dsee_S:
            return 0
        sparse: SparseDelta = self.dsee_S[adapter_name]
        if adapter_name not in self.dsee_parts:
            return sparse.n_sparse
        of_row = sparse.rows_and_columns()[0] // (sparse.out_features // len(PARTS))
        counts = [int((of_row == part).sum()) for part in self.dsee_parts[adapter_name]]
        return counts[0] if len(set(counts)) == 1 else counts

    def live_factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return U (out, k) and V (k, in) without s, as gradients see them, or None where the update is sparse only.

        k is r, and for a fused layer r for each of its parts, with zeros in U where a part is not another's.

        Args:
            adapter_name: the adapter's name.
        """
        if adapter_name not in self.dsee_U:
            return None
        up, low = self.dsee_U[adapter_name], self.dsee_V[adapter_name]
        return (up.dense() if isinstance(up, FusedUp) else up.weight), low.weight

    def live_sparse(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return S2's N values without s, as gradients see them, and their flat positions, or None without an S2.

        Args:
            adapter_name: the adapter's name.
        """
        if adapter_name not in self.dsee_S:
            return None
        sparse: SparseDelta = self.dsee_S[adapter_name]
        sparse.check_once()
        return sparse.weight, sparse.indices

    def factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return :meth:`live_factors`, detached.

        Args:
            adapter_name: the adapter's name.
        """
        found = self.live_factors(adapter_name)
        return None if found is None else (found[0].detach(), found[1].detach())

    @torch.no_grad()
    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """Return dW = s (U V + S2), dense, in the base's own orientation and the update's dtype.

        Of an update that keeps to the base's mask what the mask leaves of it.

        Args:
            adapter_name: the adapter's name.
        """
        shape = linear_shape(self.get_base_layer())
        if not self.has_update(adapter_name):
            return torch.zeros(shape[::-1] if self.transposed else shape, device=self.get_base_layer().weight.device)
        mask = get_mask(self) if keeps_to_mask(self, adapter_name) else None
        factors, sparse = self.factors(adapter_name), self.live_sparse(adapter_name)
        delta = written_out(shape, factors, sparse, self.dsee_scaling[adapter_name], mask)
        return delta.T if self.transposed else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the active updates to W in place.

        A copy of W is kept until they are unmerged, so that W comes back to the bit however often that is done. A
        quantised W is dequantised, added to and quantised again by PEFT's means, with the rounding that goes with it.

        Args:
            safe_merge: refuse a result that is not finite.
            adapter_names: which updates; None for the active ones.

        Raises:
            ArtifactError: ``safe_merge`` and the result is not finite.
            OrderError: W is quantised in a way that cannot be done again.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if not self.has_update(name):
                continue
            merged = self._shifted(name, 1)
            if safe_merge and not torch.isfinite(merged).all():
                raise ArtifactError(f"Merging adapter {name!r} gives NaN or infinity: its values are broken.")
            if not self.merged_adapters and not is_quantised(self.get_base_layer()):
                self._unmerged = self.get_base_layer().weight.data.clone()
            self._write_weight(merged)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Put W back as it was, to the bit; from a quantised W subtract the merged updates, up to rounding."""
        if self._unmerged is not None:
            self._write_weight(self._unmerged)
            self._unmerged = None
            self.merged_adapters.clear()
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if self.has_update(name):
                self._write_weight(self._shifted(name, -1))
        hold(self.get_base_layer())

    def _shifted(self, adapter_name: str, sign: int) -> torch.Tensor:
        """W + sign dW in W's own orientation and dtype, summed in full precision."""
        base = self.get_base_layer()
        check_writable(base, self.quantization_backend, "merge")
        weight = read_weight(base, self.quantization_backend)
        return shifted(weight, self.get_delta_weight(adapter_name), sign)

    def _write_weight(self, weight: torch.Tensor) -> None:
        base = self.get_base_layer()
        if is_quantised(base):
            self.set_base_weight(weight)
        else:
            base.weight.data.copy_(weight)


class DseeLinear(nn.Module, DseeLayer):
    """A Linear or Conv1D with updates."""

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: DseeConfig,
        key: str,
        model: nn.Module | None = None,
    ) -> None:
        """Put an update on a linear.

        Args:
            base_layer: Linear or Conv1D, perhaps quantised.
            adapter_name: the adapter's name.
            config: its configuration.
            key: the layer's path in the model.
            model: the model, for its quantisation settings.
        """
        super().__init__()
        DseeLayer.__init__(self, base_layer, model)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, key)

    def forward(
        self, x: torch.Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Apply the base and the active updates.

        Args:
            x: (..., in).
            *args: passed on to the base layer.
            adapter_names: one adapter for each row of the batch instead of the active ones.
            **kwargs: passed on to the base layer.

        Returns:
            (..., out).

        Raises:
            InputError: ``adapter_names`` while an update is merged, or not one name for each row.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        if adapter_names is not None:
            return self._mixed_batch(x, self.base_layer(x, *args, **kwargs), adapter_names)
        if self.disable_adapters or self.merged:
            plain: torch.Tensor = self.base_layer(x, *args, **kwargs)
            return plain
        active = [name for name in self.active_adapters if self.has_update(name)]
        alone = len(active) == 1 and not args and not kwargs
        if alone and keeps_to_mask(self, active[0]) and can_merge_on_the_fly(self, x, active[0]):
            return product_with_merged(self, x, active[0])
        folds = alone and self._folds(x, active[0])
        if folds:
            name = active[0]
            result: torch.Tensor = self.dsee_S[name].folded(self.base_layer, x, self.dsee_scaling[name])
        else:
            result = self.base_layer(x, *args, **kwargs)
        for name in active:
            if name in self.dsee_U or not folds:
                y = self._update(x, name, sparse=not folds)
                # in place where it can be: a pass over the output less, and y is the update's own
                result = y.add_(result) if y.dtype == result.dtype else result + y.to(result.dtype)
        return result

    def _folds(self, x: torch.Tensor, name: str) -> bool:
        """Whether this call adds S2 to a copy of W instead of multiplying by it apart."""
        if name not in self.dsee_S or type(self.dsee_S[name]) is not SparseDelta or torch.compiler.is_compiling():
            return False
        if keeps_to_mask(self, name):
            return False
        sparse = self.dsee_S[name]
        out_features, in_features = linear_shape(self.get_base_layer())
        return (
            worth_folding(sparse.n_sparse, x.numel() // in_features, out_features * in_features)
            and can_fold(self.base_layer, x)
            and not has_hooks(sparse)
            # under dropout S2 sees another x than W does
            and not (isinstance(self.dsee_dropout[name], nn.Dropout) and self.training)
        )

    def _mixed_batch(self, x: torch.Tensor, result: torch.Tensor, adapter_names: list[str]) -> torch.Tensor:
        if self.merged:
            raise InputError("adapter_names: an update is merged into the base. Call unmerge_adapter() first.")
        if len(adapter_names) != x.shape[0]:
            raise InputError(
                f"adapter_names has {len(adapter_names)} names for a batch of {x.shape[0]} rows. If there are as many "
                "names as sentences, this layer is also called on what they share (DeBERTa's relative positions), and "
                "adapters cannot be mixed there: leave it out of target_modules, or run one adapter after another."
            )
        for name in sorted(set(adapter_names)):
            if self.has_update(name):
                rows = torch.tensor([i for i, n in enumerate(adapter_names) if n == name], device=x.device)
                result = result.index_add(0, rows, self._update(x[rows], name).to(result.dtype))
        return result

    def _update(self, x: torch.Tensor, name: str, sparse: bool = True) -> torch.Tensor:
        """Return s (U V x + S2 x), or without S2 s U V x, shape (..., out), fresh."""
        part = self.dsee_U[name] if name in self.dsee_U else self.dsee_S[name]
        scaling = self.dsee_scaling[name]
        x = self.dsee_dropout[name](self._cast_input_dtype(x, part.weight.dtype))
        if keeps_to_mask(self, name):
            return masked_product(self, x, name)
        if name in self.dsee_U:
            # scaled where it is r wide
            y: torch.Tensor = self.dsee_U[name](self.dsee_V[name](x) * scaling)
        else:
            y = x.new_zeros(*x.shape[:-1], linear_shape(self.get_base_layer())[0])
        if sparse and name in self.dsee_S:
            # in place on U's own fresh output, never on the base's, which may be a view; under autocast U's output
            # has the lower precision, and so has to have x
            y = self.dsee_S[name](y, x.to(y.dtype), scaling)
        return y

    def __repr__(self) -> str:
        return f"dsee.{super().__repr__()}"


def update_layers(model: nn.Module) -> list[tuple[str, DseeLayer]]:
    """Return every layer that carries updates, with its path.

    Args:
        model: any module.
    """
    return [(name, module) for name, module in model.named_modules() if isinstance(module, DseeLayer)]


def any_merged(model: nn.Module) -> bool:
    """Whether an update is merged into the weights right now.

    Args:
        model: any module.
    """
    return any(layer.merged for _, layer in update_layers(model))
