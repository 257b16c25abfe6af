"""``dsee run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsee.errors import StoppedError
from dsee.processes import first, leads, together

if TYPE_CHECKING:
    from dsee.cli.terminal import Terminal
    from dsee.report.seeds import AnyRow
    from dsee.training import Recipe
    from dsee.training.run import RunResult


def run(
    recipe: Annotated[
        str,
        typer.Argument(help="YAML file that says what to do, or a name from `dsee recipes list`.", metavar="RECIPE"),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the results instead of the recipe's.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", "-d", help="Folder of the data files instead of the recipe's (data.dir)."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Run once for each of these, such as 0,1,2, and report the means.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run all stages again, finished or not.")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another value of a key, such as tune.epochs=1; repeatable."),
    ] = None,
) -> None:
    """Tune, prune, recover, merge, export and measure, as a recipe says.

    Finished stages are kept: after an interruption the same command goes on from the last one.
    """
    from dsee.cli.recipes import recipe_file
    from dsee.cli.seeds import parse_seeds
    from dsee.training.recipe_file import load_recipe

    numbers = None if seeds is None else parse_seeds(seeds)
    path = recipe_file(recipe)
    wanted, base = load_recipe(path, changes or []), path.resolve().parent
    if path != Path(recipe):
        # nothing is written, or looked for, where dsee is installed
        base = Path.cwd()
        output = output or Path(wanted.output if "output" in wanted.model_fields_set else path.stem)
    if data is not None:
        wanted = wanted.model_copy(update={"data": wanted.data.model_copy(update={"dir": str(data.resolve())})})
    carry_out(wanted, base, output, fresh, numbers)


def carry_out(recipe: Recipe, base: Path, output: Path | None, fresh: bool, seeds: list[int] | None = None) -> None:
    """Run a recipe with bars on the terminal, and print its table.

    Args:
        recipe: the recipe.
        base: folder its paths start from.
        output: overrides the recipe's output.
        fresh: forget finished stages.
        seeds: run it once for each, instead of for its own.
    """
    from dsee.cli.terminal import Terminal, quiet_libraries

    # as one of several processes: the first one speaks for all
    with together():
        terminal = Terminal(silent=not leads())
        terminal.say("loading torch, transformers and PEFT ...")
        quiet_libraries(silent=not leads())
        from dsee.registration import register

        register()
        target = (output or base / recipe.output).resolve()
        try:
            if seeds is None:
                _run_one(recipe, base, target, fresh, terminal)
            else:
                from dsee.cli.seeds import run_seeds

                run_seeds(recipe, seeds, target, terminal, lambda r, folder: _run_one(r, base, folder, fresh, terminal))
        except KeyboardInterrupt as stop:
            # typer would end the process without a word
            raise StoppedError(
                "stopped. Finished stages are kept: the same command goes on from the last one."
            ) from stop


def _run_one(recipe: Recipe, base: Path, target: Path, fresh: bool, terminal: Terminal) -> list[AnyRow]:
    """Run, write the report, print its table; return the rows."""
    from dsee.training.run import run as run_recipe

    result = run_recipe(recipe, base=base, output=target, progress=terminal, fresh=fresh)
    return first(lambda: _report(result, recipe, terminal))


def _report(result: RunResult, recipe: Recipe, terminal: Terminal) -> list[AnyRow]:
    from dsee.report import write_report

    if recipe.writes:
        from dsee.report.generation import text_table, write_text_report

        texts = write_text_report(result, recipe)
        terminal.cells(*text_table(texts)).print(f"written to {result.output}", highlight=False)
        return [*texts]
    rows = write_report(result, recipe, result.sizes)
    terminal.table(rows, result.output)
    for path in result.predictions:
        terminal.say(f"predictions for GLUE's server: {path}")
    return [*rows]
