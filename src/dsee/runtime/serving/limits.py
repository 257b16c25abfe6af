"""What is cut off before it costs anything: requests with too large a body."""

from __future__ import annotations

import json
import time
from collections import deque
from typing import Any

from dsee.runtime.serving.metrics import Metrics


class Guard:
    """ASGI middleware: refuses large bodies, and counts every request."""

    def __init__(self, app: Any, *, max_body: int, metrics: Metrics, paths: frozenset[str]) -> None:
        """Wrap an application.

        Args:
            app: the application.
            max_body: most bytes of a request's body.
            metrics: where requests are counted.
            paths: the end points; any other path is counted as "other".
        """
        self.app, self.max_body, self.metrics, self.paths = app, max_body, metrics, paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one request.

        Args:
            scope: of the connection.
            receive: gives the next message from the client.
            send: takes a message for the client.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 500

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            messages = await self._read(scope, receive)
            if messages is None:
                await self._refuse(noted)
            else:
                await self.app(scope, _replayed(messages, receive), noted)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.request(path, status, time.monotonic() - start)

    async def _read(self, scope: Any, receive: Any) -> deque[Any] | None:
        """The messages of the whole body, or None if it is too large. FastAPI would hide what goes wrong in reading."""
        if _declared(scope) > self.max_body:
            return None
        messages: deque[Any] = deque()
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_body:
                return None
            messages.append(message)
            more = message.get("more_body", False)
        return messages

    async def _refuse(self, send: Any) -> None:
        text = f"The body is larger than {self.max_body} bytes. Send fewer or shorter texts."
        body = json.dumps({"error": text}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            # the rest of the body is not read
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _replayed(messages: deque[Any], receive: Any) -> Any:
    async def replay() -> Any:
        return messages.popleft() if messages else await receive()

    return replay


def _declared(scope: Any) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            # h11 has checked that it is a number
            return int(value)
    return 0
