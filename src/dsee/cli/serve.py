"""``dsee serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsee.errors import StoppedError


def serve(
    folder: Annotated[
        Path, typer.Argument(help="An artifact, an ONNX folder, or the folder of a run.", metavar="FOLDER")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; the default is reached from this machine only.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    threads: Annotated[int, typer.Option(help="Threads for the model.", min=1)] = 1,
    optimize: Annotated[
        bool, typer.Option("--optimize", help="Put masked models on sparse kernels first, where that is faster.")
    ] = False,
    max_batch: Annotated[int, typer.Option(help="Most texts in one pass of the model.", min=1)] = 16,
    max_wait: Annotated[float, typer.Option(help="Milliseconds a text waits for others.", min=0, max=10_000)] = 5.0,
    max_queue: Annotated[int, typer.Option(help="Most texts that wait; further requests get 503.", min=1)] = 256,
    max_texts: Annotated[int, typer.Option(help="Most texts in one request.", min=1)] = 64,
    max_body: Annotated[int, typer.Option(help="Most bytes in one request.", min=1000)] = 1_000_000,
) -> None:
    """Answer over HTTP: POST /classify or /generate, GET /health and /metrics. Needs pip install 'dsee[serve]'.

    Requests that come together go through the model together. There is no authentication: put a proxy in front to
    serve anyone but yourself. Ctrl-C answers what is waiting, then ends.
    """
    from dsee.cli.folders import artifact_in
    from dsee.runtime.serving.server import is_loopback, make_server, open_socket, require_serving

    require_serving()
    from dsee.runtime.opened import is_onnx
    from dsee.runtime.serving.app import Limits

    found = artifact_in(folder)
    if not is_onnx(found):
        from dsee.cli.terminal import quiet_libraries

        quiet_libraries()
    limits = Limits(
        max_batch=max_batch,
        max_wait=max_wait / 1e3,
        max_queue=max_queue,
        max_texts=min(max_texts, max_queue),
        max_body=max_body,
    )
    listening = open_socket(host, port)
    server = make_server(found, limits, threads=threads, optimize=optimize, say=lambda text: typer.echo(text, err=True))
    address, taken = listening.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    typer.echo(f"serving {found} on http://{shown}:{taken}", err=True)
    if not is_loopback(host):
        typer.echo("Anyone who reaches this address can use the model: there is no authentication.", err=True)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt as stop:
        raise StoppedError("stopped. Everything that was waiting has been answered.") from stop
