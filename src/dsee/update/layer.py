"""A linear layer with an update beside it: y = base(x) + s (U V x + S2 x)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from dsee import support
from dsee.errors import ArtifactError, InputError, listed, nearest
from dsee.update.config import DseeConfig
from dsee.update.sparse_delta import SparseDelta

#: Spread of V at the start, as in the authors' code; U starts at zero, so that dW does.
V_STD = 0.02


def linear_shape(base: nn.Module) -> tuple[int, int]:
    """Return (out, in) of a Linear or a Conv1D.

    Raises:
        InputError: the module is neither.
    """
    if isinstance(base, nn.Linear):
        return base.out_features, base.in_features
    if isinstance(base, Conv1D):
        return base.weight.shape[1], base.weight.shape[0]
    raise InputError(
        f"target_modules names a {type(base).__name__}; an update goes on Linear or Conv1D layers only. "
        "Leave that name out of target_modules or put it into exclude_modules."
    )


def _what_is_missing(rule: str) -> str:
    how = "positions={module name: positions}" if rule == support.EXPLICIT else "calibration=batches"
    return (
        f"This update's support has not been chosen yet: support={rule!r} waits for it. "
        f"Call dsee.choose_support(model, {how}) before the model is used."
    )


def refuse_recomputed(base: nn.Module, key: str) -> None:
    """A weight recomputed at each forward would swallow a merge or a cut without a word.

    Args:
        base: a bare linear.
        key: its path in the model, for the message.

    Raises:
        InputError: its weight is masked by ``torch.nn.utils.prune``, normed or parametrized.
    """
    if isinstance(base, (nn.Linear, Conv1D)) and "weight" not in base._parameters:
        raise InputError(
            f"{key}: its weight is recomputed at every call (torch.nn.utils.prune or a parametrization), so a change "
            "would be lost. Make the pruning permanent first: torch.nn.utils.prune.remove(module, 'weight') or "
            "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')."
        )


class DseeLayer(BaseTunerLayer):
    """What PEFT needs to know of a layer with updates: the names of its parts, by adapter."""

    adapter_layer_names: tuple[str, ...] = ("dsee_U", "dsee_V", "dsee_S")
    other_param_names: tuple[str, ...] = ("dsee_scaling", "dsee_dropout")

    if TYPE_CHECKING:
        # PEFT's, which mypy would otherwise take for sub-modules
        active_adapters: list[str]
        disable_adapters: bool
        merged: bool
        get_base_layer: Any

        def _cast_input_dtype(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor: ...

    def __init__(self, base_layer: nn.Module) -> None:
        self.base_layer = base_layer
        # Any: a ModuleDict's type forgets what kind of module it holds
        self.dsee_U: Any = nn.ModuleDict()
        self.dsee_V: Any = nn.ModuleDict()
        self.dsee_S: Any = nn.ModuleDict()
        self.dsee_dropout: Any = nn.ModuleDict()
        self.dsee_scaling: dict[str, float] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    @property
    def transposed(self) -> bool:
        """Whether the base stores its weight as (in, out), as GPT-2's Conv1D does."""
        return isinstance(self.get_base_layer(), Conv1D)

    def base_weight(self) -> torch.Tensor:
        """Return W in (out, in) orientation, a view of the base's weight."""
        weight: torch.Tensor = self.get_base_layer().weight.data
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
        sizes = config.n_sparse_pattern
        # the layer's own name first: pruning writes actual sizes beside the user's wider patterns
        n_sparse = sizes.get(key if key in sizes else get_pattern_key(sizes, key), config.n_sparse)
        given = None
        if config.positions and not config.support_stored:
            given = config.positions.get(get_pattern_key(config.positions, key), [])
            # what the loaders read: where nothing is given, there is no S2
            n_sparse = config.n_sparse_pattern[key] = len(given)
        self.dsee_scaling[adapter_name] = alpha / rank if rank else 1.0
        self.dsee_dropout[adapter_name] = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        if rank:
            low, up = nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features, bias=False)
            nn.init.normal_(low.weight, std=V_STD)
            if config.init_weights:
                nn.init.zeros_(up.weight)
            self.dsee_V[adapter_name], self.dsee_U[adapter_name] = low, up
        if n_sparse:
            self.dsee_S[adapter_name] = self._new_sparse(config, n_sparse, rank, key, given)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _new_sparse(self, config: DseeConfig, n_sparse: int, rank: int, key: str, given: Any) -> SparseDelta:
        shape = linear_shape(self.get_base_layer())
        chosen_later = given is None and (config.support == support.EXPLICIT or support.needs_gradient(config.support))
        if config.support_stored or chosen_later:
            sparse = SparseDelta(torch.full((n_sparse,), -1), *shape)
            if not config.support_stored:
                sparse.missing = _what_is_missing(config.support)
            return sparse
        positions = (
            support.flat_positions(given, shape, key)
            if given is not None
            else self.find_support(
                config.support, n_sparse, rank=rank, seed=config.seed, key=key, within_mask=config.within_mask
            )
        )
        sparse = SparseDelta(positions, *shape)
        if not config.init_weights:
            nn.init.normal_(sparse.weight, std=V_STD)
        return sparse

    def find_support(
        self,
        rule: str,
        n_sparse: int,
        *,
        rank: int,
        seed: int,
        key: str,
        within_mask: bool,
        gradient: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Choose positions in this layer's W by a rule.

        Args:
            rule: its name.
            n_sparse: N.
            rank: r of the update.
            seed: the configuration's.
            key: the layer's path in the base model; each matrix has a seed of its own from it.
            within_mask: keep to what :meth:`kept_weights` returns.
            gradient: sum over batches of |dLoss/dW|, shape (out, in), for rules that look at it.

        Returns:
            int64, shape (n_sparse,), ascending.

        Raises:
            InputError: see :func:`dsee.support.choose`, with the layer's path.
        """
        # the same in every process and for every order of construction
        own_seed = (seed * 0x9E3779B1 + zlib.crc32(key.encode())) % 2**63
        mask = self.kept_weights() if within_mask else None
        weight = self.base_weight()
        try:
            return support.choose(rule, weight, n_sparse, rank=rank, seed=own_seed, gradient=gradient, mask=mask)
        except InputError as error:
            raise InputError(f"{key}: {error}") from None

    def kept_weights(self) -> torch.Tensor:
        """Return what the base's mask keeps, or without a mask where W is not zero; bool, shape (out, in)."""
        # pruning looks at updates, so that neither can import the other while it is being imported itself
        from dsee.pruning.masks import get_mask

        mask = get_mask(self)
        return self.base_weight() != 0 if mask is None else mask

    def has_update(self, adapter_name: str) -> bool:
        """Whether the adapter has a part on this layer: a pattern or a cut can leave it with neither."""
        return adapter_name in self.dsee_U or adapter_name in self.dsee_S

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """Return dW = s (U V + S2), dense, in the base's own orientation and the update's dtype.

        Args:
            adapter_name: the adapter's name.
        """
        delta = torch.zeros(linear_shape(self.get_base_layer()), device=self.get_base_layer().weight.device)
        if adapter_name in self.dsee_U:
            up, low = self.dsee_U[adapter_name].weight, self.dsee_V[adapter_name].weight
            delta = delta.to(up.dtype) + up.detach() @ low.detach()
        if adapter_name in self.dsee_S:
            delta = delta + self.dsee_S[adapter_name].dense()
        delta = delta * self.dsee_scaling[adapter_name]
        return delta.T if self.transposed else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the active updates to W in place.

        Args:
            safe_merge: refuse a result that is not finite.
            adapter_names: which updates; None for the active ones.

        Raises:
            ArtifactError: ``safe_merge`` and the result is not finite.
        """
        weight = self.get_base_layer().weight
        exact = torch.promote_types(weight.dtype, torch.float32)
        for name in check_adapters_to_merge(self, adapter_names):
            if not self.has_update(name):
                continue
            merged = (weight.data.to(exact) + self.get_delta_weight(name).to(exact)).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ArtifactError(f"Merging adapter {name!r} gives NaN or infinity: its values are broken.")
            weight.data.copy_(merged)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract the merged updates again; exact up to rounding, as with LoRA."""
        weight = self.get_base_layer().weight
        exact = torch.promote_types(weight.dtype, torch.float32)
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if self.has_update(name):
                weight.data.copy_((weight.data.to(exact) - self.get_delta_weight(name).to(exact)).to(weight.dtype))


class DseeLinear(nn.Module, DseeLayer):
    """A Linear or Conv1D with updates."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: DseeConfig, key: str) -> None:
        super().__init__()
        DseeLayer.__init__(self, base_layer)
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
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            return self._mixed_batch(x, result, adapter_names)
        if self.disable_adapters or self.merged:
            return result
        for name in self.active_adapters:
            if self.has_update(name):
                result = result + self._update(x, name).to(result.dtype)
        return result

    def _mixed_batch(self, x: torch.Tensor, result: torch.Tensor, adapter_names: list[str]) -> torch.Tensor:
        if self.merged:
            raise InputError("adapter_names: an update is merged into the base. Call unmerge_adapter() first.")
        if len(adapter_names) != x.shape[0]:
            raise InputError(f"adapter_names has {len(adapter_names)} names for a batch of {x.shape[0]} rows.")
        for name in sorted(set(adapter_names)):
            if self.has_update(name):
                rows = torch.tensor([i for i, n in enumerate(adapter_names) if n == name], device=x.device)
                result = result.index_add(0, rows, self._update(x[rows], name).to(result.dtype))
        return result

    def _update(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Return s (U V x + S2 x), shape (..., out)."""
        part = self.dsee_U[name] if name in self.dsee_U else self.dsee_S[name]
        x = self.dsee_dropout[name](self._cast_input_dtype(x, part.weight.dtype))
        if name in self.dsee_U:
            y: torch.Tensor = self.dsee_U[name](self.dsee_V[name](x))
        else:
            y = x.new_zeros(*x.shape[:-1], linear_shape(self.get_base_layer())[0])
        if name in self.dsee_S:
            # in place on U's own fresh output, never on the base's, which may be a view; under autocast U's output
            # has the lower precision, and so has to have x
            y = self.dsee_S[name].add_to(y, x.to(y.dtype))
        return y * self.dsee_scaling[name]

    def __repr__(self) -> str:
        return f"dsee.{super().__repr__()}"


def update_layers(model: nn.Module) -> list[tuple[str, DseeLayer]]:
    """Return every layer that carries updates, with its path.

    Args:
        model: any module.
    """
    return [(name, module) for name, module in model.named_modules() if isinstance(module, DseeLayer)]


def check_names(positions: Iterable[str], names: list[str]) -> None:
    """Refuse a name in ``positions`` that fits no module.

    Args:
        positions: names or regular expressions, as in PEFT's patterns.
        names: paths of the modules that can take positions.

    Raises:
        InputError: a name that fits none, with the nearest that would.
    """
    for key in positions:
        try:
            fits = any(re.match(rf"(.*\.)?({key})$", name) for name in names)
        except re.error as error:
            raise InputError(f"positions: {key!r} is neither a name nor a regular expression: {error}.") from None
        if not fits:
            raise InputError(
                f"positions: no module with an update is called {key!r}.{nearest(key, names)} There are: "
                f"{listed(names)}."
            )


def any_merged(model: nn.Module) -> bool:
    """Whether an update is merged into the weights right now.

    Args:
        model: any module.
    """
    return any(layer.merged for _, layer in update_layers(model))
