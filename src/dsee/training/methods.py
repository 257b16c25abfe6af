"""How to tune: the update, or one of the baselines that it is compared with, all through the same chain.

A baseline that is LoRA is tuned by PEFT's own LoRA. Afterwards B A is held as an update without S2, which is the same
function of the same numbers, so that pruning, recovering and merging are one piece of code for both. The others train
parts of the plain model: all of it, its biases (BitFit, Ben Zaken et al. 2022) or its norms (Qi et al. 2022), the two
latter with the task head.
"""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import TrainerCallback
from transformers.pytorch_utils import Conv1D

from dsee.architectures import base_model, default_targets
from dsee.architectures._registry import plain_model
from dsee.artifact.lora_import import import_lora
from dsee.errors import InputError
from dsee.masks import masked_linears
from dsee.pruning.gates import add_gates, has_gates
from dsee.pruning.schedule import hold_trained
from dsee.steps import history, restore
from dsee.support import needs_gradient
from dsee.surgery import fold_gates
from dsee.surgery.merge import merge
from dsee.training.recipe import Recipe, UpdateSpec
from dsee.update import DseeConfig
from dsee.update.choose import choose_support
from dsee.update.layer import GATE, update_layers
from dsee.update.positions import check_names

#: Exceptions for single modules.
PATTERNS = ("rank_pattern", "alpha_pattern", "n_sparse_pattern")


def _task_type(recipe: Recipe) -> str:
    return "CAUSAL_LM" if recipe.writes else "SEQ_CLS"


def update_config(recipe: Recipe, update: UpdateSpec) -> DseeConfig:
    """Return the configuration of a recipe's update.

    Args:
        recipe: the recipe.
        update: its update, or one in its place.

    Raises:
        InputError: a field out of its range.
    """
    return DseeConfig(task_type=_task_type(recipe), seed=recipe.seed, **update.model_dump())


def lora_config(recipe: Recipe, model: Any) -> LoraConfig:
    """Return PEFT's configuration of a LoRA with the rank, scale, dropout and targets of a recipe's update.

    Args:
        recipe: the recipe.
        model: what it is for; it decides the targets where the recipe leaves them out, as for an update.
    """
    update = recipe.update
    usual = default_targets().get(str(model.config.model_type))
    return LoraConfig(
        task_type=_task_type(recipe),
        r=update.r,
        # declared as a whole number, used as any
        lora_alpha=int(update.alpha) if float(update.alpha).is_integer() else update.alpha,
        lora_dropout=update.dropout,
        use_rslora=update.use_rslora,
        target_modules=usual if update.target_modules is None else update.target_modules,
        modules_to_save=update.modules_to_save,
        layers_to_transform=update.layers_to_transform,
        rank_pattern=dict(update.rank_pattern),
        alpha_pattern=dict(update.alpha_pattern),
        bias={"dsee_only": "lora_only"}.get(update.bias, update.bias),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )


def _with_lora(recipe: Recipe, model: Any) -> Any:
    try:
        return get_peft_model(model, lora_config(recipe, model))
    except ValueError as error:
        raise InputError(f"method: lora: PEFT refuses the update's keys: {error}") from error


def check_method(recipe: Recipe, empty: Any) -> None:
    """Refuse what the recipe's method cannot do on a model, before anything is trained.

    Args:
        recipe: the recipe.
        empty: the model's shapes without its weights; it is changed.

    Raises:
        InputError: nothing would be trained, PEFT refuses the LoRA, or a target or a pattern fits no module.
    """
    if recipe.method not in ("dsee", "lora"):
        train_only(empty, recipe.method)
        return
    with warnings.catch_warnings():
        # PEFT's word on what is refused below
        warnings.filterwarnings("ignore", "The following .*_pattern keys", RuntimeWarning)
        model = _with_lora(recipe, empty) if recipe.method == "lora" else with_smallest_update(recipe, empty)
    names = [name for name, module in model.get_base_model().named_modules() if isinstance(module, BaseTunerLayer)]
    for pattern in PATTERNS:
        # a key that fits nothing would be a result of other ranks than were asked for
        check_names(getattr(recipe.update, pattern), names, f"update.{pattern}")


def with_smallest_update(recipe: Recipe, empty: Any) -> Any:
    """Put an update of rank 1 where a recipe's goes; no support is searched, so that no weights are needed.

    Args:
        recipe: the recipe.
        empty: the model's shapes without its weights; it is changed.

    Raises:
        InputError: a field out of its range, or a target that fits no module.
    """
    smallest = {"r": 1, "n_sparse": 0, "support": "random", **{pattern: {} for pattern in PATTERNS}}
    return get_peft_model(empty, update_config(recipe, recipe.update.model_copy(update=smallest)))


def prepared(recipe: Recipe, model: Any, calibration: Any) -> Any:
    """Return a pre-trained model ready to be tuned: with an update or a LoRA, or with parts of it trainable.

    Args:
        recipe: the recipe.
        model: the pre-trained model, changed in place.
        calibration: returns batches, for supports that are chosen by gradients.

    Raises:
        InputError: the method has nothing to train here.
    """
    if recipe.method == "dsee":
        config = update_config(recipe, recipe.update)
        model = get_peft_model(model, config)
        if needs_gradient(config.support):
            choose_support(model, calibration=calibration())
    elif recipe.method == "lora":
        model = _with_lora(recipe, model)
    else:
        train_only(model, recipe.method)
    if recipe.gates:
        add_gates(model, heads=recipe.gates.heads, neurons=recipe.gates.neurons)
    return model


def train_only(model: Any, method: str) -> None:
    """Switch on what a baseline trains, gates included, and everything else off; a PeftModel knows that by itself.

    Args:
        model: the model.
        method: "full", "bitfit" or "norms"; the others are left alone.

    Raises:
        InputError: the model has no biases or no norms.
    """
    if method in ("dsee", "lora"):
        return
    chosen = {"full": _everything, "bitfit": _biases, "norms": _norms}[method](model)
    if not chosen:
        what = "biases" if method == "bitfit" else "norms"
        raise InputError(f"method: {method}: a {type(model).__name__} has no {what} to train. Choose another method.")
    chosen |= _head(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(id(parameter) in chosen or name.rpartition(".")[2] == GATE)


def _everything(model: nn.Module) -> set[int]:
    return {id(parameter) for parameter in model.parameters()}


def _biases(model: nn.Module) -> set[int]:
    return {id(parameter) for name, parameter in model.named_parameters() if name.rpartition(".")[2] == "bias"}


def _norms(model: nn.Module) -> set[int]:
    norms = (module for module in model.modules() if "norm" in type(module).__name__.lower())
    return {id(parameter) for module in norms for parameter in module.parameters(recurse=False)}


def _head(model: Any) -> set[int]:
    """The task head, which nothing has trained before; a language model's was trained with the rest."""
    if "CausalLM" in type(model).__name__ or "LMHead" in type(model).__name__:
        return set()
    return _everything(model) - _everything(base_model(model))


def settled(recipe: Recipe, model: Any) -> Any:
    """Return a tuned model in the form that the chain goes on with: PEFT's LoRA as an update without S2.

    Args:
        recipe: the recipe.
        model: the tuned model; a LoRA's base is taken out of it.
    """
    if recipe.method != "lora" or update_layers(model):
        return model
    steps = history(model)
    with tempfile.TemporaryDirectory(prefix="dsee-") as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        found = import_lora(model.unload(), folder, n_sparse=0, seed=recipe.seed)
    restore(found, steps)
    return found.eval()


def merged(model: Any) -> Any:
    """Return a plain model: the update merged, or of a model without one the gates folded.

    Args:
        model: a tuned model.
    """
    if plain_model(model) is not model:
        return merge(model)
    if has_gates(model):
        fold_gates(model)
    return model.requires_grad_(False)


class HoldMasks(TrainerCallback):
    """Keeps zeros where a mask has them while W itself is trained."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:  # noqa: ARG002 - Trainer's signature
        """Write the zeros again."""
        hold_trained(model)


def holders(model: nn.Module) -> list[TrainerCallback]:
    """Return what has to hold a model to its masks while it is tuned: nothing where the masked weights are frozen.

    Args:
        model: the model, with what is trained switched on.
    """
    trained = any(linear.weight.requires_grad for linear in masked_linears(model).values())
    return [HoldMasks()] if trained else []
