"""``dsee run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsee.errors import StoppedError

if TYPE_CHECKING:
    from dsee.training import Recipe


def run(
    recipe: Annotated[Path, typer.Argument(help="YAML file that says what to do.", metavar="RECIPE")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the results instead of the recipe's.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", "-d", help="Folder of the data files instead of the recipe's (data.dir)."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run all stages again, finished or not.")] = False,
) -> None:
    """Tune, prune, recover, merge, export and measure, as a recipe says.

    Finished stages are kept: after an interruption the same command goes on from the last one.
    """
    from dsee.training.recipe_file import load_recipe

    wanted = load_recipe(recipe)
    if data is not None:
        wanted = wanted.model_copy(update={"data": wanted.data.model_copy(update={"dir": str(data.resolve())})})
    carry_out(wanted, recipe.resolve().parent, output, fresh)


def carry_out(recipe: Recipe, base: Path, output: Path | None, fresh: bool) -> None:
    """Run a recipe with bars on the terminal, and print its table.

    Args:
        recipe: the recipe.
        base: folder its paths start from.
        output: overrides the recipe's output.
        fresh: forget finished stages.
    """
    from dsee.cli.terminal import Terminal, quiet_libraries

    terminal = Terminal()
    terminal.say("loading torch, transformers and PEFT ...")
    quiet_libraries()
    from dsee.registration import register
    from dsee.report import write_report
    from dsee.training.run import run as run_recipe

    register()
    target = output.resolve() if output else None
    try:
        result = run_recipe(recipe, base=base, output=target, progress=terminal, fresh=fresh)
    except KeyboardInterrupt as stop:
        # typer would end the process without a word
        raise StoppedError("stopped. Finished stages are kept: the same command goes on from the last one.") from stop
    if recipe.writes:
        from dsee.report.generation import text_table, write_text_report

        table = text_table(write_text_report(result, recipe))
        terminal.cells(*table).print(f"written to {result.output}", highlight=False)
        return
    rows = write_report(result, recipe, result.sizes)
    terminal.table(rows, result.output)
    for path in result.predictions:
        terminal.say(f"predictions for GLUE's server: {path}")
