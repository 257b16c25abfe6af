"""A server in a thread of its own, and a client that speaks plain HTTP to it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from onnx_tools import WORDS, tokenizer

import dsee
from behaviours.families import ALL
from conftest import tiny_bert
from dsee.runtime.serving.app import Limits
from dsee.runtime.serving.server import make_server, open_socket

HEADERS = {"Content-Type": "application/json"}


class Client:
    """Asks a running server; ``server`` is uvicorn's, ``service`` what stands behind the end points."""

    def __init__(self, server, port):
        self.server, self.port = server, port

    def ask(self, method, path, body=None, headers=None, encoded=None):
        """Return status, decoded body and headers of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            data = encoded if encoded is not None else None if body is None else json.dumps(body)
            connection.request(method, path, data, HEADERS if headers is None else headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            kind = answer.headers.get("content-type", "")
            return (
                answer.status,
                json.loads(text) if "json" in kind else text,
                {k.lower(): v for k, v in answer.headers.items()},
            )
        finally:
            connection.close()

    def classify(self, *texts, **more):
        """Return the answers to texts."""
        status, found, _ = self.ask("POST", "/classify", {"texts": list(texts)} | more)
        assert status == 200, found
        return found["answers"]

    def metric(self, name):
        """Return the value of one line of the metrics."""
        _, text, _ = self.ask("GET", "/metrics")
        return next(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.rsplit(" ", 1)[0] == name)


@contextmanager
def serving(folder, **limits):
    """Serve a folder; the limits are those of the server's own defaults unless given."""
    server = make_server(Path(folder), Limits(**limits))
    listening = open_socket("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        yield Client(server, listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()
    assert not thread.is_alive()


def until(condition, seconds=60):
    """Wait for something that another thread brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def classifier(folder):
    """A tiny classifier with a tokenizer, as an artifact."""
    return dsee.save(tiny_bert(), folder, tokenizer=tokenizer())


def generator(folder, family="gpt2"):
    """A tiny model that writes, as an artifact; its token 9 ends a text."""
    model = ALL[family].base()
    model.generation_config.eos_token_id = 9
    return dsee.save(model, folder, tokenizer=tokenizer())


def sentence(draw, longest=12):
    """Random words that the tokenizer knows."""
    return " ".join(draw.choices(WORDS, k=draw.randint(1, longest)))
