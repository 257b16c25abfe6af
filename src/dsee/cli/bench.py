"""``dsee bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsee.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from dsee.cli.terminal import Terminal
    from dsee.runtime.bench import Bench

#: What matplotlib writes without further packages.
PICTURES = (".png", ".svg", ".pdf")


def bench(
    folder: Annotated[
        str, typer.Argument(help="The model to judge: an artifact, an ONNX folder, or the folder of a run.")
    ],
    against: Annotated[
        list[str],
        typer.Option("--against", "-a", help="A folder to compare with, a plain transformers one too; repeatable."),
    ],
    batch: Annotated[list[int] | None, typer.Option(help="Sentences at a time; repeatable.  [default: 1]")] = None,
    sequence: Annotated[list[int] | None, typer.Option(help="Tokens a sentence; repeatable.  [default: 128]")] = None,
    new_tokens: Annotated[
        int,
        typer.Option(
            help="Time writing so many tokens after each sentence, and the first alone; for models that write."
        ),
    ] = 0,
    rounds: Annotated[int, typer.Option(help="Rounds that count; each runs every model once.", min=1)] = 30,
    warmup: Annotated[int, typer.Option(help="Rounds before.", min=0)] = 3,
    threads: Annotated[int, typer.Option(help="Threads for each model.", min=1)] = 1,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Measure peak memory, in a fresh process for each model.")
    ] = True,
    optimize: Annotated[
        bool, typer.Option("--optimize", help="Put masked models on sparse kernels first, where that is faster.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all figures to a file; - is standard output.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a picture: .png, .svg or .pdf.")] = None,
) -> None:
    """Time models against each other, turn by turn in one process, and compare their bytes and memory.

    On one thread the speed-ups compare CPU seconds, which other work on the machine disturbs least.
    """
    for path in (json_file, plot):
        if path and str(path) != "-" and not path.absolute().parent.is_dir():
            raise InputError(f"{path.absolute().parent}: there is no such folder.")
    folders = _named([_folder(each) for each in (folder, *against)])
    if plot and plot.suffix not in PICTURES:
        raise InputError(f"--plot {plot}: the name has to end in {', '.join(PICTURES)}.")
    from dsee.cli.terminal import Terminal, quiet_libraries

    terminal = Terminal()
    terminal.say("loading torch and the models ...")
    quiet_libraries()
    from dsee.report.bench_plot import plot_bench, require_plot
    from dsee.runtime.bench import bench as run_bench

    if plot:
        require_plot()
    shapes = [(b, s) for b in dict.fromkeys(batch or [1]) for s in dict.fromkeys(sequence or [128])]
    steps = len(shapes) * (rounds + warmup) + len(folders) * memory
    with terminal.stage("bench", steps) as bar:
        found = run_bench(
            folders,
            shapes=shapes,
            runs=rounds,
            warmup=warmup,
            threads=threads,
            memory=memory,
            kernels=optimize,
            new_tokens=new_tokens,
            progress=bar.advance,
        )
    if plot:
        plot_bench(found, plot)
    _tell(terminal, found, json_file)


def _tell(terminal: Terminal, found: Bench, json_file: Path | None) -> None:
    """Print tables and write the figures to a file, or print the figures alone."""
    from dsee.report.bench import bench_data

    data = json.dumps(bench_data(found), indent=2)
    if str(json_file) == "-":
        typer.echo(data)
        return
    if json_file:
        json_file.write_text(data + "\n", encoding="utf-8")
    _show(terminal, found)


def _show(terminal: Terminal, found: Bench) -> None:
    from dsee.report.bench import bench_cells, bench_header, bench_sentences

    many = f"{found.threads} threads" if found.threads > 1 else "one thread"
    for timed in found.shapes:
        written = f" and {timed.new_tokens} new ones" if timed.new_tokens else ""
        typer.echo(f"{timed.batch} x {timed.sequence} tokens{written}, {many}, {found.rounds} rounds")
        terminal.cells(bench_header(timed), bench_cells(found, timed))
        for line in bench_sentences(found, timed):
            typer.echo(line)


def _folder(reference: str) -> Path:
    """The folder a user means: with a manifest, of a run, inside a package, or a plain transformers one."""
    from dsee.cli.folders import artifact_in
    from dsee.tasks.places import locate

    path = locate(reference, Path())
    try:
        return artifact_in(path)
    except ArtifactError:
        if (path / "config.json").is_file():
            return path
        raise


def _named(folders: list[Path]) -> dict[str, Path]:
    """Short names that tell the folders apart: as many last parts of their paths as that takes."""
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) != len(resolved):
        twice = next(folder for folder in resolved if resolved.count(folder) > 1)
        raise InputError(f"bench: {twice} is named twice; compare different folders.")
    for count in range(1, max(len(path.parts) for path in resolved) + 1):
        names = ["/".join(path.parts[-count:]) for path in resolved]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, folders, strict=True))
