"""The command, its verbs, its exit codes."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from dsee._version import __version__
from dsee.cli.bench import bench
from dsee.cli.demo import demo
from dsee.cli.doctor import doctor
from dsee.cli.inspect import inspect
from dsee.cli.predict import predict
from dsee.cli.recipes import app as recipes
from dsee.cli.run import run
from dsee.cli.serve import serve
from dsee.errors import DseeError, EchoError, InputError, StoppedError
from dsee.processes import launched

app = typer.Typer(
    name="dsee",
    help="Tune a pre-trained transformer with a low-rank plus sparse update, prune it, and ship a small, faster model.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or input, 130 stopped by Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dsee {__version__}")
        raise typer.Exit


#: Verbs that several processes of torchrun can carry out together.
TOGETHER = ("run", "demo")


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - eager: its callback has answered
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the command itself."""
    if launched() > 1 and context.invoked_subcommand not in TOGETHER:
        # one after the other they would do the same work several times, into the same files
        reason = "works in one process. Start it without torchrun; what several share out is `dsee run`."
        raise EchoError(2) if int(os.environ["RANK"]) else InputError(f"dsee {context.invoked_subcommand} {reason}")


app.command(epilog="Example: dsee run recipe.yaml")(run)
app.command(epilog="Example: dsee demo --output demo")(demo)
app.command(epilog='Example: dsee predict demo/onnx-int8 "a quietly moving film"')(predict)
app.command(epilog="Example: dsee inspect demo/model")(inspect)
app.command(epilog="Example: dsee bench demo/onnx-int8 --against demo/model --plot bench.png")(bench)
app.command(epilog="Example: dsee serve demo/onnx-int8 --port 8000")(serve)
app.command(epilog="Example: dsee doctor")(doctor)
app.add_typer(recipes, name="recipes")


def main() -> None:
    """Run the command and exit with its code.

    One clear message for what dsee understands; a traceback only on request (``DSEE_TRACEBACK=1``).
    """
    code = _outcome()
    if launched() > 1:
        # threads of torch.distributed may abort a process whose interpreter goes down under them
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _outcome() -> int:
    """Run the command, say what went wrong, and return the exit code."""
    try:
        app()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except EchoError as error:
        return error.exit_code
    except DseeError as error:
        if os.environ.get("DSEE_TRACEBACK"):
            raise
        _say(str(error) if isinstance(error, StoppedError) else f"error: {error}")
        return error.exit_code
    except BrokenPipeError:
        # the reader of our output has gone, as with `| head`; Python would complain once more while closing
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("DSEE_TRACEBACK"):
            raise
        _say(
            f"unexpected error: {type(error).__name__}: {error}\n"
            "This is a fault in dsee. DSEE_TRACEBACK=1 shows where; please report it with that output."
        )
        return 1
    return 0


def _say(text: str) -> None:
    typer.echo(text, err=True)
