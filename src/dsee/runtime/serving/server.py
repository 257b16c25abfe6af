"""Opening the model and the port, and closing both without losing an answer."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsee.errors import InputError, MissingExtraError
from dsee.runtime.opened import open_model
from dsee.runtime.serving.engine import Engine

if TYPE_CHECKING:
    from dsee.runtime.serving.app import Limits

#: Seconds that running requests have to finish when the server is stopped.
GRACE = 30


def require_serving() -> None:
    """Fail early if there is nothing to serve with.

    Raises:
        MissingExtraError: fastapi or uvicorn is not installed.
    """
    for name in ("fastapi", "uvicorn"):
        try:
            __import__(name)
        except ImportError as error:
            raise MissingExtraError("Serving over HTTP", "serve") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    Args:
        host: a name or an address.
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_socket(host: str, port: int) -> socket.socket:
    """Listen on a port.

    Args:
        host: a name or an address.
        port: the port; 0 takes a free one.

    Raises:
        InputError: the port is taken, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"Cannot listen on {host}:{port} ({error.strerror}). Choose another --host or --port."
        ) from error


def make_server(
    folder: Path,
    limits: Limits | None = None,
    *,
    threads: int = 1,
    optimize: bool = False,
    say: Callable[[str], None] | None = None,
) -> Any:
    """Open a model and return a uvicorn server for it; ``run(sockets=[open_socket(...)])`` starts it.

    Args:
        folder: an artifact, an ONNX folder or a plain transformers folder.
        limits: what to take on.
        threads: threads for the model.
        optimize: let :func:`dsee.optimize` put layers on the kernels first, chosen by one text of up to 128 tokens.
        say: is told what was chosen, if given.

    Raises:
        MissingExtraError: fastapi or uvicorn is not installed.
        ArtifactError: the folder is damaged, or holds no model.
        InputError: the model neither classifies nor generates, or has no tokenizer, or a limit makes no sense; or
            an ONNX folder is to be optimized.
    """
    require_serving()
    import uvicorn

    from dsee.runtime.serving.app import Limits, application

    limits = limits or Limits()
    if limits.max_queue < limits.max_texts:
        raise InputError(
            f"max_queue={limits.max_queue} is smaller than max_texts={limits.max_texts}: a request of that many texts "
            "would never fit."
        )
    model = open_model(folder, threads=threads)
    if optimize:
        chosen = _optimized(model, threads)
        if say is not None:
            say(chosen)
    engine = Engine(model, threads=threads)
    settings = uvicorn.Config(
        application(engine, limits),
        log_level="warning",
        access_log=False,
        # a request brings one text at least, and its body stays in memory: more than this could only wait in vain
        limit_concurrency=limits.max_queue + 64,
        timeout_graceful_shutdown=GRACE,
    )
    return uvicorn.Server(settings)


def _optimized(model: Any, threads: int) -> str:
    """Put a model's layers on the kernels where that is faster here; what was chosen, in a line."""
    if not hasattr(model, "model"):
        raise InputError(
            f"{model.folder} is run by onnxruntime, which dsee.optimize cannot change. Serve the PyTorch folder, or "
            "leave --optimize out."
        )
    import torch

    from dsee.runtime.optimize import optimize

    # the choice is one for this number of threads
    torch.set_num_threads(threads)
    return optimize(model.model, model.sample(1, min(128, int(model.max_length)))).summary
