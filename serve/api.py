"""The HTTP application: OpenAI's chat/completions, completions and models, /health and /metrics."""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models import Prompt
from sample.session import TooLong
from serve.answers import Answers
from serve.engine import Engine, Overloaded, Unavailable
from serve.invalid import what_is_wrong
from serve.loading import Reader
from serve.metrics import Metrics
from serve.protocol import Asked, ChatAsked, TextAsked
from serve.replies import ChatReply, EventStream, Reply, TextReply
from serve.settings import ServeSettings

CLIENT_LEFT = 499
T = TypeVar("T")
_TYPES = {401: "authentication_error", 504: "timeout_error"}


def refusal(status: int, message: str, code: str | None = None, param: str | None = None) -> JSONResponse:
    """An error in OpenAI's form."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    headers = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(status)
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)


class Refused(Exception):
    """A request that cannot be answered: HTTP status, message, OpenAI's code."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


class Service:
    """What the endpoints share."""

    def __init__(self, engine: Engine, settings: ServeSettings, name: str):
        self.engine, self.settings, self.name = engine, settings, name
        self.created, self.metrics = int(time.time()), Metrics(engine)
        self._reader: Reader | None = None

    @property
    def reader(self) -> Reader:
        """Of texts, as the loaded model reads them. `Unavailable` before."""
        self.engine.require_ready()
        if self._reader is None:
            assert self.engine.sampler is not None
            self._reader = Reader(self.engine.sampler.model, self.settings, self.settings.image_resolution)
        return self._reader

    def authorise(self, request: Request) -> None:
        key, given = self.settings.api_key, request.headers.get("authorization", "").removeprefix("Bearer ")
        if key is not None and not hmac.compare_digest(given.encode("latin-1"), key.encode()):
            raise Refused(401, "the API key is missing or wrong: send Authorization: Bearer KEY", "invalid_api_key")

    def model(self) -> dict[str, Any]:
        own = {"id": self.name, "object": "model", "created": self.created, "owned_by": "dllm"}
        return own | {"max_model_len": self.engine.sequence_tokens}

    async def chat(self, request: Request, asked: ChatAsked) -> Response:
        turns, read = [message.turn for message in asked.messages], self.reader.chat
        return await self._answer(request, asked, ChatReply, lambda: [read(turns, asked.pictures)])

    async def completions(self, request: Request, asked: TextAsked) -> Response:
        read = self.reader.text
        texts = asked.prompts
        return await self._answer(
            request, asked, TextReply, lambda: [read(text) if isinstance(text, str) else Prompt(text) for text in texts]
        )

    async def _answer(
        self, request: Request, asked: Asked, kind: type[Reply], prompts_of: Callable[[], list[Prompt]]
    ) -> Response:
        """prompts_of: called in a thread, since a long text and pictures take a while."""
        try:
            answers = Answers(self.engine, await asyncio.to_thread(prompts_of), asked, self.settings)
            answers.start()
        except TooLong as error:
            raise Refused(400, str(error), "context_length_exceeded") from None
        except ValueError as error:
            raise Refused(400, str(error)) from None
        reply = kind(answers, asked, self.name)
        if asked.stream:
            return EventStream(_with_error(reply.events()), lambda gone: self._end(answers, gone))
        gone = False
        try:
            whole = await _unless_gone(request, reply.whole())
            gone = whole is None
            return Response(status_code=CLIENT_LEFT) if whole is None else JSONResponse(whole)
        finally:
            self._end(answers, gone)

    def _end(self, answers: Answers, gone: bool) -> None:
        answers.close()
        self.metrics.count(answers)
        if gone:
            self.metrics.cancelled.inc()


async def _with_error(events: AsyncIterator[str]) -> AsyncIterator[str]:
    """The events; an error in the middle becomes the last one."""
    try:
        async for event in events:
            yield event
    except (TimeoutError, Unavailable) as error:
        yield EventStream.event(json.loads(bytes(_refusal_of(error).body)))


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` gives; None, and its end, where the client leaves before."""
    task, left = asyncio.create_task(work), asyncio.create_task(_client_left(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for each in (task, left):
            each.cancel()
        await asyncio.wait({task, left})


async def _client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refuse(request: Request, error: Exception) -> Response:
    return _refusal_of(error)


def _refusal_of(error: Exception) -> JSONResponse:
    """What clients get of an error."""
    if isinstance(error, Refused):
        return refusal(error.status, str(error), error.code)
    if isinstance(error, HTTPException):
        return refusal(error.status_code, error.detail)
    if isinstance(error, RequestValidationError):
        message, where = what_is_wrong(error.errors(), error.body)
        return refusal(400, message, param=where)
    if isinstance(error, TimeoutError):
        return refusal(504, "the answer took longer than the server's timeout_seconds: ask for fewer tokens")
    return refusal(503, str(error), "overloaded" if isinstance(error, Overloaded) else "unavailable")


class BodyLimit:
    """ASGI: refuses a body once more of it has come than the server takes, whatever it says of its length."""

    def __init__(self, app: ASGIApp, mib: float):
        self.app, self.mib = app, mib

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.mib * 2**20:
                raise HTTPException(413, f"the body is larger than the server's max_body_mib={self.mib:g}: send less")
            return message

        await self.app(scope, limited, send)


class Measured:
    """ASGI: counts and times every request by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]):
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun, status = time.monotonic(), CLIENT_LEFT
        path = scope["path"] if scope["path"] in self.paths else "other"

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - begun)


def make_app(engine: Engine, settings: ServeSettings, name: str) -> FastAPI:
    """The application over an engine that somebody else starts and stops."""
    service = Service(engine, settings, name)
    app = FastAPI(title="dllm", docs_url=None, redoc_url=None)
    for kind in (Refused, HTTPException, RequestValidationError, TimeoutError, Overloaded, Unavailable):
        app.add_exception_handler(kind, _refuse)
    guarded = [Depends(service.authorise)]

    @app.post("/v1/chat/completions", dependencies=guarded, response_model=None)
    async def chat(request: Request, asked: ChatAsked) -> Response:
        return await service.chat(request, asked)

    @app.post("/v1/completions", dependencies=guarded, response_model=None)
    async def completions(request: Request, asked: TextAsked) -> Response:
        return await service.completions(request, asked)

    @app.get("/v1/models", dependencies=guarded)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.model()]}

    @app.get("/v1/models/{any_name:path}", dependencies=guarded)
    async def model(any_name: str) -> dict[str, Any]:
        return service.model()

    @app.get("/health", response_model=None)
    async def health() -> Response:
        engine.require_ready()
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    app.add_middleware(BodyLimit, mib=settings.max_body_mib)
    paths = frozenset(getattr(route, "path", "") for route in app.routes)
    app.add_middleware(Measured, metrics=service.metrics, paths=paths)
    return app
