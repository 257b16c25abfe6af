"""The rules that a recipe's words stand for."""

from __future__ import annotations

from pathlib import Path

from dsee.pruning import Blocks, Budget, Gradual, Heads, MaskRule, Neurons, NofM, Rule, Weights
from dsee.pruning.schedule import Calibration
from dsee.training.methods import update_config
from dsee.training.recipe import Recipe
from dsee.training.reports import check_reports
from dsee.training.setting import Setting


def rules_of(setting: Setting) -> list[Rule | Budget]:
    """Return the recipe's rules for heads and neurons.

    Raises:
        InputError: a rule that does not exist.
    """
    spec, seed = setting.recipe.prune, setting.recipe.seed
    rules: list[Rule | Budget] = []
    if spec and spec.heads:
        rules.append(Heads(**spec.heads.arguments(seed)))
    if spec and spec.neurons:
        rules.append(Neurons(**spec.neurons.arguments(seed)))
    if spec and spec.budget:
        shape = setting.recipe.measure
        rules.append(Budget(**spec.budget.model_dump(), batch=shape.batch, sequence=shape.sequence, seed=seed))
    return rules


def mask_rules_of(setting: Setting) -> list[MaskRule]:
    """Return the recipe's rules for weights.

    Raises:
        InputError: a rule that does not exist.
    """
    spec, seed = setting.recipe.prune, setting.recipe.seed
    rules: list[MaskRule] = []
    if spec and spec.weights:
        rules.append(Weights(**spec.weights.model_dump(), seed=seed))
    if spec and spec.blocks:
        rules.append(Blocks(**spec.blocks.model_dump(), seed=seed))
    if spec and spec.nofm:
        rules.append(NofM(**spec.nofm.model_dump(), seed=seed))
    return rules


def at_once(setting: Setting) -> list[Rule | Budget | MaskRule]:
    """Return the rules that the pruning stage carries out: all but one for weights that has a schedule."""
    spec = setting.recipe.prune
    return [*rules_of(setting), *([] if spec and spec.schedule else mask_rules_of(setting))]


def schedule_of(setting: Setting, calibration: Calibration = None) -> Gradual | None:
    """Return the recipe's schedule, if it has one.

    Args:
        setting: the run.
        calibration: batches for scores that look at data.

    Raises:
        InputError: a rule that does not exist, or steps in the wrong order.
    """
    spec = setting.recipe.prune
    if spec is None or spec.schedule is None:
        return None
    return Gradual(mask_rules_of(setting)[0], **spec.schedule.model_dump(), calibration=calibration)


def check_recipe(recipe: Recipe) -> None:
    """Find the mistakes of a recipe that show without its model and its data.

    Args:
        recipe: the recipe.

    Raises:
        InputError: a rule or an update that does not exist, or a package to report to that is not installed.
    """
    setting = Setting(recipe, Path(), Path())
    check_reports(recipe.report_to)
    update_config(recipe, recipe.update)
    rules_of(setting)
    mask_rules_of(setting)
    schedule_of(setting)
