"""The HTTP application. Imports FastAPI, so it is imported only to serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

from dsee._version import __version__
from dsee.runtime.serving.batcher import Batcher, QueueFullError, StoppingError
from dsee.runtime.serving.engine import Engine, Prompt, Question
from dsee.runtime.serving.limits import Guard
from dsee.runtime.serving.metrics import Metrics

PATHS = frozenset({"/classify", "/generate", "/health", "/metrics"})
#: A generator runs this many tokens further where a request names no limit.
NEW_TOKENS = 32
#: Never to be reached; it keeps a hostile number from becoming a loop.
MOST_NEW_TOKENS = 4096


@dataclass(frozen=True)
class Limits:
    """What one server takes on.

    Attributes:
        max_batch: most texts in one pass of the model.
        max_wait: seconds a text waits for others.
        max_queue: most texts that wait; then 503.
        max_texts: most texts in one request.
        max_body: most bytes in one request.
    """

    max_batch: int = 16
    max_wait: float = 0.005
    max_queue: int = 256
    max_texts: int = 64
    max_body: int = 1_000_000


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # JSON can write half of a pair, which no tokenizer takes
        raise PydanticCustomError("surrogate", "Input should be valid Unicode, without lone surrogates") from error
    return text


Text = Annotated[str, AfterValidator(_whole)]


class Strict(BaseModel):
    """A request body; unknown fields are errors, so that a misspelt one shows."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ClassifyBody(Strict):
    """Texts to classify.

    Attributes:
        texts: the texts.
        pairs: second sentences, one for each text, for a model tuned on pairs.
        truncate: cut a long text off instead of refusing it.
    """

    texts: Annotated[list[Text], Field(min_length=1)]
    pairs: list[Text] | None = None
    truncate: bool = False


class GenerateBody(Strict):
    """Prompts to go on from.

    Attributes:
        prompts: the prompts.
        max_new_tokens: most new tokens for each.
    """

    prompts: Annotated[list[Text], Field(min_length=1)]
    max_new_tokens: Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS)] = NEW_TOKENS


class Service:
    """The end points' common part: checks, the queue, the counters."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        """Set up.

        Args:
            engine: the model.
            limits: what to take on.
        """
        self.engine, self.limits, self.metrics = engine, limits, Metrics()
        self.batcher: Batcher[Any, Any] | None = None
        # beside the model's thread, and one only: a tokenizer must not be used by two at a time
        self._counting = ThreadPoolExecutor(1, thread_name_prefix="dsee-tokens")

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Start the batcher, and on the way out answer what is waiting.

        Args:
            _: the application.
        """
        self.batcher = Batcher(
            self.engine.work,
            max_batch=self.limits.max_batch,
            max_wait=self.limits.max_wait,
            max_queue=self.limits.max_queue,
            prepare=self.engine.prepare,
            on_batch=self.metrics.batch,
        )
        self.batcher.start()
        yield
        await self.batcher.stop()
        self._counting.shutdown()

    @property
    def waiting(self) -> int:
        """Texts in the queue."""
        return self.batcher.waiting if self.batcher else 0

    def require(self, task: str) -> None:
        """Refuse what the model is not for.

        Args:
            task: "classify" or "generate".

        Raises:
            HTTPException: 404.
        """
        if self.engine.task != task:
            raise HTTPException(404, f"This model does not {task}. Use POST /{self.engine.task}.")

    async def answer(self, items: list[Any], name: str, truncate: bool = False) -> list[Any]:
        """Check the items' number and lengths, and have them answered.

        Args:
            items: questions or prompts.
            name: of the field they came in.
            truncate: whether a long text is cut off by the model.

        Raises:
            HTTPException: 413 for too many or too long texts, 503 for a full queue.
        """
        if len(items) > self.limits.max_texts:
            raise HTTPException(413, f"{name}: {len(items)} are more than the {self.limits.max_texts} of one request.")
        if not truncate:
            await self._check_lengths(items, name)
        assert self.batcher is not None  # noqa: S101 - requests come after start-up
        try:
            return await self.batcher.submit(items)
        except QueueFullError as error:
            raise HTTPException(
                503, f"The queue is full ({self.waiting} texts wait). Try again later.", {"Retry-After": "1"}
            ) from error
        except StoppingError as error:
            raise HTTPException(503, "The server is shutting down.", {"Retry-After": "1"}) from error

    async def _check_lengths(self, items: list[Any], name: str) -> None:
        loop = asyncio.get_running_loop()
        lengths = await loop.run_in_executor(self._counting, self.engine.lengths, items)
        for number, length in enumerate(lengths):
            if length > self.engine.limit:
                new = " with the new ones" if self.engine.task == "generate" else ""
                hint = "." if new else ', or send "truncate": true.'
                raise HTTPException(
                    413,
                    f"{name}[{number}] has {length} tokens{new}; this model takes {self.engine.limit}. Shorten it"
                    + hint,
                )


def application(engine: Engine, limits: Limits) -> Any:
    """Return the ASGI application.

    Args:
        engine: the model.
        limits: what to take on.
    """
    service = Service(engine, limits)
    # the pages with the interactive documentation would load scripts from elsewhere
    app = FastAPI(title="dsee", version=__version__, lifespan=service.running, docs_url=None, redoc_url=None)
    app.exception_handler(RequestValidationError)(_unusable)
    app.exception_handler(HTTPException)(_refused)
    app.exception_handler(Exception)(_failed)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Say what is served."""
        return {
            "status": "ok",
            "dsee": __version__,
            "model": engine.model.folder.name,
            "task": engine.task,
            "labels": engine.labels,
            "max_tokens": engine.limit,
            "waiting": service.waiting,
        }

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        """Counters in Prometheus' text format."""
        return PlainTextResponse(service.metrics.text(service.waiting), media_type="text/plain; version=0.0.4")

    @app.post("/classify")
    async def classify(body: ClassifyBody) -> dict[str, Any]:
        """Classify texts or pairs."""
        service.require("classify")
        if body.pairs is not None and len(body.pairs) != len(body.texts):
            raise HTTPException(422, f"pairs: {len(body.pairs)} for {len(body.texts)} texts; each text needs one.")
        pairs: list[Any] = body.pairs or [None] * len(body.texts)
        items = [Question(text, pair) for text, pair in zip(body.texts, pairs, strict=True)]
        return {"answers": [asdict(each) for each in await service.answer(items, "texts", body.truncate)]}

    @app.post("/generate")
    async def generate(body: GenerateBody) -> dict[str, Any]:
        """Go on from prompts."""
        service.require("generate")
        items = [Prompt(text, body.max_new_tokens) for text in body.prompts]
        return {"answers": [asdict(each) for each in await service.answer(items, "prompts")]}

    return Guard(app, max_body=limits.max_body, metrics=service.metrics, paths=PATHS)


def _error(status: int, text: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": text}, status, headers)


async def _unusable(_: Request, error: Any) -> JSONResponse:
    """The first thing that is wrong with a body, in one sentence."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return _error(400, f"The body is not valid JSON ({first['ctx']['error']}).")
    if first["type"] in ("model_attributes_type", "dict_type"):
        return _error(422, "The body has to be a JSON object, sent with Content-Type: application/json.")
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return _error(422, f"{where}: {first['msg']}.")


async def _refused(_: Request, error: Any) -> JSONResponse:
    return _error(error.status_code, str(error.detail), error.headers)


async def _failed(_: Request, error: Exception) -> JSONResponse:
    return _error(500, f"The model failed on this request ({type(error).__name__}).")
