"""Opening the model and the port, and closing both without losing an answer."""

from __future__ import annotations

import ipaddress
import socket
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


def make_server(folder: Path, limits: Limits | None = None, *, threads: int = 1) -> Any:
    """Open a model and return a uvicorn server for it; ``run(sockets=[open_socket(...)])`` starts it.

    Args:
        folder: an artifact, an ONNX folder or a plain transformers folder.
        limits: what to take on.
        threads: threads for the model.

    Raises:
        MissingExtraError: fastapi or uvicorn is not installed.
        ArtifactError: the folder is damaged, or holds no model.
        InputError: the model neither classifies nor generates, or has no tokenizer, or a limit makes no sense.
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
    engine = Engine(open_model(folder, threads=threads), threads=threads)
    settings = uvicorn.Config(
        application(engine, limits),
        log_level="warning",
        access_log=False,
        # a request brings one text at least, and its body stays in memory: more than this could only wait in vain
        limit_concurrency=limits.max_queue + 64,
        timeout_graceful_shutdown=GRACE,
    )
    return uvicorn.Server(settings)
