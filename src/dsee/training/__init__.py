"""The chain as stages: tune, prune, recover, merge, export, measure; each leaves a record and can be resumed."""

from dsee.training.recipe import Recipe
from dsee.training.recipe_file import load_recipe
from dsee.training.run import RunResult, run

__all__ = ["Recipe", "RunResult", "load_recipe", "run"]
