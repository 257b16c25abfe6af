"""What stock classes cannot read as transformers classes of its own, which the Auto classes know after ``import dsee``.

Models that were cut, models with branches of a split merge, and compact files. Such a BERT has ``model_type``
"dsee_bert" and keeps the class name BertForSequenceClassification. A plain AutoModel, in a process that has not
imported dsee, stops at the unknown ``model_type`` instead of loading noise into wrong shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from dsee.architectures import find, layers, supported
from dsee.architectures._registry import CUT_PREFIX
from dsee.artifact.compact import INDEX, read_index, read_state
from dsee.artifact.sides import SIDES, make_room
from dsee.errors import ArtifactError, InputError
from dsee.pruning.plan import LayerPlan
from dsee.surgery.cut import cut

#: Every Auto class whose models the mapped families have.
AUTO_CLASSES = (
    "AutoModel",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
    "AutoModelForMultipleChoice",
    "AutoModelForMaskedLM",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForTextEncoding",
    "AutoModelForPreTraining",
    "AutoModelForNextSentencePrediction",
)

#: Field of ``config.json`` with the heads and neurons of each layer.
STRUCTURE = "dsee_structure"
#: Field of ``config.json`` that says whether the weights are in compact files.
COMPACT = "dsee_compact"

_CONFIGS: dict[str, type[PretrainedConfig]] = {}
_MODELS: dict[tuple[str, str], type[PreTrainedModel]] = {}


class CutMixin(nn.Module):
    """Builds the dense model, then gives it the shapes and branches that the configuration says."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        cut_to, sides = getattr(config, STRUCTURE, None), getattr(config, SIDES, None)
        if cut_to is not None or (sides is None and not getattr(config, COMPACT, False)):
            shrink(self, cut_to)
        if sides is not None:
            make_room(self, sides)

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """Load a checkpoint; one in compact files is written out first.

        Args:
            name: as for transformers.
            *args: passed on.
            config: as for transformers.
            **kwargs: passed on.

        Returns:
            What transformers returns.
        """
        own: Any = cls
        parent: Any = super()
        known = config
        if not isinstance(known, PretrainedConfig):
            known = own.config_class.from_pretrained(config or name, **_of_hub(kwargs))
        if not getattr(known, COMPACT, False):
            return parent.from_pretrained(name, *args, config=config, **kwargs)
        if known is not config:
            # what belongs to the configuration goes there, as transformers does it; the rest is the loader's
            loader: dict[str, Any] = {key: kwargs.pop(key) for key in ("dtype", "torch_dtype") if key in kwargs}
            known, kwargs = own.config_class.from_pretrained(config or name, return_unused_kwargs=True, **kwargs)
            kwargs |= loader
        return from_compact(own, name, args, known, kwargs)


def _of_hub(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Where to look for files, out of the arguments of ``from_pretrained``."""
    names = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
    return {name: kwargs[name] for name in names if name in kwargs}


def from_compact(own: Any, name: Any, args: tuple[Any, ...], config: Any, kwargs: dict[str, Any]) -> Any:
    """Load a model from compact files, as transformers would have from plain ones.

    Args:
        own: its class, one with :class:`CutMixin`.
        name: folder, or name on the hub.
        args: for the model.
        config: its configuration.
        kwargs: for ``from_pretrained``.

    Returns:
        The model, of a stock class if it was not cut; or model and report, as with transformers.
    """
    # of a model on the hub the files are fetched, and lie in one folder then
    folder = Path(str(cached_file(name, INDEX, **_of_hub(kwargs)))).parent
    for file in read_index(folder)[0]:
        cached_file(name, file, **_of_hub(kwargs))
    plain, attention = plain_fields(config), config._attn_implementation
    model_type = config.model_type.removeprefix(CUT_PREFIX)
    if getattr(config, STRUCTURE, None) is None and getattr(config, SIDES, None) is None:
        # to be compact is a matter of files, not of the model
        own = own.__bases__[1]
        config = CONFIG_MAPPING[model_type](**plain)
    else:
        config = type(config)(**plain)
    if attention is not None:
        # asked for by the caller; files do not say it
        config._attn_implementation = attention
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in own(config).state_dict().items()}
    state = read_state(folder, shapes)
    generation = {}
    if (folder / "generation_config.json").is_file():
        generation["generation_config"] = transformers.GenerationConfig.from_pretrained(folder)
    found = own.from_pretrained(None, *args, config=config, state_dict=state, **generation, **kwargs)
    model = found[0] if isinstance(found, tuple) else found
    model.name_or_path = model.config._name_or_path = str(name)
    return found


def shrink(model: Any, structure: Any) -> None:
    """Give each layer the stored number of heads and neurons; which ones is settled by the weights loaded later.

    Args:
        model: a freshly built model of a mapped family.
        structure: ``{"heads": [...], "neurons": [...]}``, one number per layer.

    Raises:
        ArtifactError: the structure does not fit the model.
    """
    views = layers(model)
    sizes = {"heads": [view.heads for view in views], "neurons": [view.neurons for view in views]}
    if not isinstance(structure, dict) or set(structure) != set(sizes):
        raise ArtifactError("config.json: dsee_structure has to hold 'heads' and 'neurons', one number per layer each.")
    for unit, full in sizes.items():
        stored = structure[unit]
        fits = isinstance(stored, list) and len(stored) == len(full) and all(type(n) is int for n in stored)
        if not fits or not all(1 <= n <= most for n, most in zip(stored, full, strict=True)):
            raise ArtifactError(f"config.json: dsee_structure[{unit!r}]={stored} does not fit a model with {full}.")
    if any(view.architecture.fixed_heads for view in views) and structure["heads"] != sizes["heads"]:
        raise ArtifactError(
            f"config.json: dsee_structure['heads']={structure['heads']}, but the heads of this family cannot be cut."
        )
    plan = [
        LayerPlan(tuple(range(heads, view.heads)), tuple(range(neurons, view.neurons)))
        for view, heads, neurons in zip(views, structure["heads"], structure["neurons"], strict=True)
    ]
    # the weights are loaded later: there is nothing yet to fold into a bias
    cut(model, plan, fold=False)


def config_class(model_type: str) -> type[PretrainedConfig]:
    """Return the configuration class for what stock classes of a family cannot read.

    Args:
        model_type: the family, "bert" for example; one without a map will do.

    Raises:
        InputError: transformers does not know the family.
    """
    if model_type not in CONFIG_MAPPING:
        raise InputError(
            f"save: transformers knows no model_type {model_type!r}, so a cut, split or compact model of that family "
            "could not be loaded again. Save it as it is, before that step."
        )
    _register(model_type)
    return _CONFIGS[model_type]


def model_class(model_type: str, name: str) -> type[PreTrainedModel] | None:
    """Return the class that loads a saved model, or None if the family has no such class.

    Args:
        model_type: as in ``config.json``, "bert" or "dsee_bert" for example.
        name: as in ``architectures``, "BertForSequenceClassification" for example.
    """
    if model_type.startswith(CUT_PREFIX):
        if model_type.removeprefix(CUT_PREFIX) in CONFIG_MAPPING:
            # a family registered since dsee was imported, or one without a map
            _register(model_type.removeprefix(CUT_PREFIX))
        return _MODELS.get((model_type, name))
    found = getattr(transformers, name, None)
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None


def auto_class(model: nn.Module) -> str:
    """Return the name of the Auto class that loads models of this class; "AutoModel" where none is known.

    Args:
        model: a transformers model.
    """
    model_type = str(getattr(getattr(model, "config", None), "model_type", "")).removeprefix(CUT_PREFIX)
    if model_type not in CONFIG_MAPPING:
        return "AutoModel"
    config = CONFIG_MAPPING[model_type]
    for name in AUTO_CLASSES:
        known = getattr(transformers, name)._model_mapping
        if config in known and known[config].__name__ == type(model).__name__:
            return name
    return "AutoModel"


def is_cut(model: nn.Module) -> bool:
    """Whether a transformers model has layers that its stock class could not rebuild."""
    return getattr(getattr(model, "config", None), STRUCTURE, None) is not None


def stock_config(model: Any, state: Mapping[str, torch.Tensor]) -> PretrainedConfig | None:
    """Return a configuration from which a stock class rebuilds a cut model, or None if there is none.

    Args:
        model: a transformers model whose layers were cut.
        state: its weights, as they will be stored.
    """
    views = layers(model)
    fields = {name: {int(getattr(view, held)) for view in views} for name, held in find(model).uniform}
    if not fields or any(len(values) > 1 for values in fields.values()):
        return None
    plain = plain_fields(model.config) | {name: values.pop() for name, values in fields.items()}
    model_type = model.config.model_type.removeprefix(CUT_PREFIX)
    stock = model_class(model_type, type(model).__name__)
    if stock is None:
        return None
    try:
        config: PretrainedConfig = CONFIG_MAPPING[model_type](**{k: v for k, v in plain.items() if k != STRUCTURE})
        with torch.device("meta"):
            rebuilt = stock(config).state_dict()
    except (ValueError, StrictDataclassError):
        # Llama wants the width to be a multiple of the number of heads, whatever their size
        return None
    shapes = {name: value.shape for name, value in state.items()}
    return config if shapes == {name: value.shape for name, value in rebuilt.items()} else None


def plain_fields(config: PretrainedConfig) -> dict[str, Any]:
    """Return what a configuration says, without its type and the version that wrote it."""
    left_out = ("model_type", "transformers_version", COMPACT)
    return {k: v for k, v in config.to_dict().items() if k not in left_out}


def register_auto_classes() -> None:
    """Register a configuration and all model classes for each mapped family; a second call does nothing."""
    for model_type in supported():
        if model_type in CONFIG_MAPPING:
            _register(model_type)


def _register(model_type: str) -> None:
    if model_type in _CONFIGS:
        return
    base_config = CONFIG_MAPPING[model_type]
    name = "Dsee" + base_config.__name__
    cut_config = type(name, (base_config,), {"model_type": CUT_PREFIX + model_type, "__module__": __name__})
    _CONFIGS[model_type] = cut_config
    AutoConfig.register(CUT_PREFIX + model_type, cut_config)
    for auto_name in AUTO_CLASSES:
        _register_model(getattr(transformers, auto_name), base_config, cut_config)


def _register_model(auto_class: Any, base_config: type, cut_config: Any) -> None:
    if base_config not in auto_class._model_mapping:
        return
    base = auto_class._model_mapping[base_config]
    key = (cut_config.model_type, base.__name__)
    if key not in _MODELS:
        # the name stays, so that ``architectures`` in config.json reads as users know it
        _MODELS[key] = type(base.__name__, (CutMixin, base), {"config_class": cut_config, "__module__": __name__})
    auto_class.register(cut_config, _MODELS[key])
