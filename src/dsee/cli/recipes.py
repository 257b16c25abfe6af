"""``dsee recipes``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dsee.recipes import Shipped

app = typer.Typer(
    help="Recipes that come with dsee, and a check of your own.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(help="A name that `dsee recipes list` shows.", metavar="NAME")]


@app.command("list", epilog="Example: dsee recipes list")
def list_all() -> None:
    """Show the names of the recipes that come with dsee, what each is for and what it needs."""
    from dsee.recipes import shipped

    for recipe in shipped().values():
        typer.echo(f"{recipe.name}\n  {recipe.about}.\n  needs: {'; '.join(recipe.needs)}")


@app.command(epilog="Example: dsee recipes show minilm-rotten-tomatoes")
def show(name: Name) -> None:
    """Print a recipe."""
    typer.echo(named(name).path.read_text(encoding="utf-8"), nl=False)


@app.command(epilog="Example: dsee recipes copy minilm-rotten-tomatoes mine.yaml")
def copy(
    name: Name,
    to: Annotated[Path | None, typer.Argument(help="File or folder; the current folder by default.")] = None,
) -> None:
    """Copy a recipe to a file of yours, to change it. A file that is there is left alone."""
    from dsee.errors import InputError

    found = named(name)
    target = to or Path()
    if target.is_dir():
        target /= found.path.name
    if not target.parent.is_dir():
        raise InputError(f"{target}: there is no folder {target.parent}.")
    try:
        with target.open("x", encoding="utf-8") as stream:
            stream.write(found.path.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise InputError(f"{target} is there already. Name another file, or remove it first.") from error
    typer.echo(f"written to {target}")


@app.command(epilog="Example: dsee recipes validate recipe.yaml")
def validate(
    file: Annotated[str, typer.Argument(help="A YAML file, or a name that `dsee recipes list` shows.")],
) -> None:
    """Check a recipe without its model and its data; `dsee run` says the same of it before anything else."""
    from dsee.cli.terminal import quiet_libraries
    from dsee.training.recipe_file import load_recipe

    path = recipe_file(file)
    recipe = load_recipe(path)
    quiet_libraries()
    from dsee.training.rules import check_recipe

    check_recipe(recipe)
    typer.echo(f"{file} is a valid recipe.")


def named(name: str) -> Shipped:
    """Return a recipe that comes with dsee.

    Args:
        name: its name, with or without ".yaml".

    Raises:
        InputError: there is none of that name.
    """
    from dsee.errors import InputError, listed, nearest
    from dsee.recipes import shipped

    known = shipped()
    wanted = name.removesuffix(".yaml")
    if wanted not in known:
        raise InputError(f"No recipe {name!r} comes with dsee.{nearest(wanted, known)} There are: {listed(known)}.")
    return known[wanted]


def recipe_file(text: str) -> Path:
    """Return the file that a user means: one of that path, or else the recipe of that name that comes with dsee.

    Args:
        text: a path or a name.
    """
    from dsee.recipes import shipped

    path = Path(text)
    known = shipped()
    return known[text].path if text in known and not path.exists() else path
