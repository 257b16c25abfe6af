"""The configuration of an update, in PEFT's own grammar."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from dsee.errors import InputError
from dsee.support import EXPLICIT, check_rule
from dsee.update.fused import check_parts
from dsee.update.targets import check_expression


class DseePeftType(enum.StrEnum):
    """The key under which PEFT finds this method; a one-member enum because PEFT's own is closed to outsiders."""

    DSEE = "DSEE"


@dataclass
class DseeConfig(PeftConfig):
    """What is trained: dW = s (U V + S2), s = alpha / r (or alpha / sqrt(r)), for each target matrix.

    ``r=0`` trains S2 alone (then s = 1), ``n_sparse=0`` is plain LoRA; both 0 is an error. Fields that PEFT already has
    keep PEFT's meaning.

    Attributes:
        target_modules: names (matched as suffixes), a regular expression, "all-linear", or None for the family's
            default. Embeddings take an update where they are named.
        r: rank of U V.
        alpha: the update is scaled by alpha / r.
        use_rslora: scale by alpha / sqrt(r) instead, so that a larger r does not shrink the update
            (Kalajdzievski 2023).
        n_sparse: N, the number of trained entries of S2 per matrix.
        support: the rule that chooses where S2 may be non-zero; ``dsee.support.rules()`` lists them. "gradient" waits
            for ``dsee.choose_support(model, calibration=batches)``; "explicit" takes ``positions``.
        positions: module name (or regular expression) -> flat positions ``row * in + column``, or (row, column) pairs,
            in (out, in) orientation; for ``support="explicit"``. A target module that is not named gets no S2.
        within_mask: choose among the weights that the base's mask keeps, or without a mask among those not zero.
        masked: keep the update to the base's mask while it is tuned, W S1 + S1 s (U V + S2), so that a masked merge
            changes nothing. Masks that come later count from then on. Costs a product of W's size more per step for
            each masked matrix; see :mod:`dsee.update.masked`.
        seed: seeds the choice of the support and nothing else.
        dropout: dropout on the update's input.
        rank_pattern: module name (or regular expression) -> r for that module.
        alpha_pattern: module name -> alpha.
        n_sparse_pattern: module name -> N; pruning writes the actual sizes here. For a fused layer a list gives the N
            of each of its parts.
        fused_parts: name (or regular expression) of a layer that holds query, key and value in one matrix, in this
            order and of one width -> the parts that take an update, each one of its own: rank r and N entries. None
            for the family's default (GPT-2's ``c_attn``: query and value); an empty dict for one update over all.
        bake_masks: make the masks of ``torch.nn.utils.prune`` and parametrizations permanent before the update goes on;
            without it a base that has them is refused.
        exclude_modules: names or a regular expression of modules to leave alone.
        modules_to_save: modules trained in full and saved with the update, such as a task head.
        layers_to_transform: layer indices to adapt; None for all.
        layers_pattern: name of the layer list, if it is an unusual one.
        bias: "none", "all" or "dsee_only".
        init_weights: False gives a random, non-zero update, which only tests want.
        support_stored: written by ``save_pretrained``: the positions come with the weights and are not searched again.

    Raises:
        InputError: a field out of its range.
    """

    target_modules: list[str] | set[str] | str | None = field(default=None)
    r: int = field(default=8)
    alpha: float = field(default=32.0)
    use_rslora: bool = field(default=False)
    n_sparse: int = field(default=64)
    support: str = field(default="grebsmo")
    positions: dict[str, Any] = field(default_factory=dict)
    within_mask: bool = field(default=False)
    masked: bool = field(default=False)
    seed: int = field(default=0)
    dropout: float = field(default=0.0)
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    n_sparse_pattern: dict[str, int | list[int]] = field(default_factory=dict)
    fused_parts: dict[str, list[str]] | None = field(default=None)
    bake_masks: bool = field(default=False)
    exclude_modules: list[str] | set[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)
    bias: str = field(default="none")
    init_weights: bool = field(default=True)
    support_stored: bool = field(default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = DseePeftType.DSEE
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        # plain lists, which JSON keeps
        self.positions = {name: _plain(given) for name, given in (self.positions or {}).items()}
        self._check()

    def _check(self) -> None:
        for name, value in self._with_pattern("r", "rank_pattern") + self._with_pattern("n_sparse", "n_sparse_pattern"):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InputError(f"{name}={value!r} has to be a whole number, 0 or more.")
        for name, alpha in self._with_pattern("alpha", "alpha_pattern"):
            # not (alpha <= 0): NaN has to fail too
            if not alpha > 0:
                raise InputError(f"{name}={alpha} has to be positive: the update is scaled by alpha / r.")
        sizes = [value for name, value in self._with_pattern("n_sparse", "n_sparse_pattern")]
        if self.r == 0 and not any([*sizes, *self.rank_pattern.values()]):
            raise InputError("r=0 and n_sparse=0 leave nothing to train. Set r for the low-rank part, n_sparse for S2.")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout={self.dropout} is out of range: it lies in [0, 1).")
        if self.bias not in ("none", "all", "dsee_only"):
            raise InputError(f"bias={self.bias!r} is unknown. Use 'none', 'all' or 'dsee_only'.")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise InputError("layers_to_transform needs target_modules as a list of names, not a regular expression.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise InputError("layers_pattern says where layers_to_transform counts; set layers_to_transform too.")
        if isinstance(self.target_modules, str):
            check_expression(self.target_modules)
        for name, parts in (self.fused_parts or {}).items():
            check_parts(f"fused_parts[{name!r}]", parts)
        check_rule(self.support)
        self._check_positions()

    def _check_positions(self) -> None:
        if self.positions and self.support != EXPLICIT:
            raise InputError(f"positions are given, but support={self.support!r} would choose. Set support='explicit'.")
        for name, given in self.positions.items():
            if not isinstance(given, list):
                raise InputError(f"positions[{name!r}]={given!r} has to be a list of positions or (row, column) pairs.")

    def scaling(self, rank: int, alpha: float) -> float:
        """Return s: alpha / r, alpha / sqrt(r) with ``use_rslora``, 1 without a low-rank part.

        Args:
            rank: r of the matrix.
            alpha: alpha of the matrix.
        """
        if not rank:
            return 1.0
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def _with_pattern(self, name: str, pattern: str) -> list[tuple[str, Any]]:
        """A field and its exceptions, each under the name to complain about."""
        found = [(name, getattr(self, name))]
        for key, value in getattr(self, pattern).items():
            # one N for each part of a fused layer
            values = value if isinstance(value, list) else [value]
            found += [(f"{pattern}[{key!r}]", single) for single in values]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; sets become sorted lists, so that the same configuration gives the same file."""
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in super().to_dict().items()}
        plain["peft_type"] = DseePeftType.DSEE.value
        if plain["modules_to_save"]:
            # PEFT adds the head's names again at each load
            plain["modules_to_save"] = list(dict.fromkeys(plain["modules_to_save"]))
        return plain

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write ``adapter_config.json``, stating that the support is stored beside it.

        Args:
            save_directory: the folder, made if missing.
            **kwargs: passed on to PEFT.
        """
        fresh = self.support_stored, self.positions
        # the positions are among the weights, where a cut keeps them up to date
        self.support_stored, self.positions = True, {}
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.support_stored, self.positions = fresh


def _plain(given: Any) -> Any:
    if isinstance(given, (list, tuple)):
        return [_plain(part) for part in given]
    # tensors and numpy arrays and scalars
    return given.tolist() if hasattr(given, "tolist") else given
