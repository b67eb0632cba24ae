"""A judge behind an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, a hosted one).

Whatever an endpoint does, it costs no more than its time limit: one deadline holds for the whole exchange, a body has a
bound, an answer that cannot be read is none. The key goes to the endpoint's own origin and to no other.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import os
import re
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx2
from PIL import Image

from reward.base import RewardError
from reward.judge.judge import Question
from reward.judge.pictures import content_of
from runtime.text import printable

if TYPE_CHECKING:
    from configs.schema import JudgeConfig

RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
ABOUT_THE_QUESTION = (400, 413, 414, 422, 431)
MAX_REPLY_BYTES = 4 << 20
MAX_ERROR_CHARACTERS = 500
MAX_REDIRECTS = 5
PAUSE_SECONDS = 1.0
MAX_WAIT_SECONDS = 60.0


class Refusal(Exception):
    """The endpoint will not answer this question, however often it is asked."""


class Reply(NamedTuple):
    status: int
    retry_after: str
    body: bytes


class ApiJudge:
    """The endpoint that a config's `judge` section names.

    timeout_seconds bounds one try from its first byte to its last, redirects included. After time-outs, lost
    connections, overload and answers that cannot be read it is tried again, `attempts` times in all with growing
    pauses; then the answer is None. So is that to a question which the endpoint refuses (too long), unless it refuses
    all of them. A refusal that is not about the question (bad key, unknown model) raises RuntimeError with what the
    endpoint said.
    """

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        self.url, self._headers = _endpoint(config.api)
        if name := config.api_key_variable:
            if not os.environ.get(name):
                raise ValueError(f"judge.api_key_variable names {name}, which is not set in the environment")
            self._headers["Authorization"] = f"Bearer {os.environ[name]}"
        self._headers["Accept-Encoding"] = "identity"  # a small packed body may be a large one
        self._certificates = httpx2.create_ssl_context()

    def check(self) -> None:
        """ValueError when nothing answers at the URL; to be called before expensive work."""
        problem = _run(self._reach())
        if problem:
            raise ValueError(f"judge.api: nothing answers at {self.url}: {problem}; start the judge or fix the URL")

    def __call__(self, questions: Sequence[Question]) -> list[str | None]:
        answers: list[str | None | Refusal] = _run(self._ask_all(questions))
        refusals = [answer for answer in answers if isinstance(answer, Refusal)]
        if refusals and len(refusals) == len(answers):
            raise RewardError(str(refusals[0]))
        return [None if isinstance(answer, Refusal) else answer for answer in answers]

    async def _reach(self) -> str:
        """What keeps the endpoint from being reached, or "". ValueError where it takes no question from us."""
        async with self._client() as client:
            try:
                exchange = self._exchange(client, "GET", "/models")
                status = (await asyncio.wait_for(exchange, self.config.timeout_seconds)).status
            except TimeoutError:
                return f"no answer in {self.config.timeout_seconds:g} seconds"
            except Exception as error:
                return printable(str(error)) or type(error).__name__
        if status in (401, 403):
            raise ValueError(f"judge.api_key_variable: {self.url} refuses our key with {status}; set another key")
        return ""

    async def _ask_all(self, questions: Sequence[Question]) -> list[str | None | Refusal]:
        free = asyncio.Semaphore(self.config.parallel)

        async def ask(client: httpx2.AsyncClient, question: Question) -> str | None | Refusal:
            async with free:
                return await self._ask(client, question)

        async with self._client() as client:
            return await asyncio.gather(*(ask(client, question) for question in questions))

    async def _ask(self, client: httpx2.AsyncClient, question: Question) -> str | None | Refusal:
        config = self.config
        body = {name: getattr(config, name) for name in ("model", "temperature", "top_p", "max_tokens")}
        try:
            content = content_of(question.text, question.pictures if config.pictures else ())
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            return Refusal(f"judge.api: a picture cannot be sent: {error}")
        body |= {"messages": [{"role": "user", "content": content}], "seed": question.sample}
        for attempt in range(config.attempts):
            pause = PAUSE_SECONDS * 2**attempt
            try:
                exchange = self._exchange(client, "POST", "/chat/completions", body)
                reply = await asyncio.wait_for(exchange, config.timeout_seconds)
            except Exception:  # of the network's, the protocol's and the library's many: none may end a run
                reply = Reply(0, "", b"")
            if reply.status == 200 and (answer := _content(reply.body)) is not None:
                return answer
            if 400 <= reply.status < 500 and reply.status not in RETRIED:
                said = printable(reply.body.decode("utf-8", "replace")[:MAX_ERROR_CHARACTERS])
                refusal = f"judge.api: {self.url} refuses with {reply.status} (judge.model={config.model}): {said}"
                if reply.status in ABOUT_THE_QUESTION:
                    return Refusal(refusal)
                raise RewardError(refusal)
            if attempt + 1 < config.attempts:
                await asyncio.sleep(min(max(pause, _seconds(reply.retry_after)), MAX_WAIT_SECONDS))
        return None

    async def _exchange(
        self, client: httpx2.AsyncClient, method: str, path: str, body: dict[str, Any] | None = None
    ) -> Reply:
        content = None if body is None else json.dumps(body).encode()
        request = client.build_request(method, f"{self.url}{path}", content=content, headers=self._headers)
        for _ in range(MAX_REDIRECTS):
            response = await client.send(request, stream=True)
            try:
                if response.next_request is None:
                    received = b"".join([piece async for piece in _bounded(response)])
                    return Reply(response.status_code, response.headers.get("Retry-After", ""), received)
                request = response.next_request
            finally:
                await response.aclose()
            if request.url.origin != self.url.origin:
                request.headers.pop("Authorization", None)
        raise ValueError("too many redirects")

    def _client(self) -> httpx2.AsyncClient:
        local = self.url.host in ("localhost", "127.0.0.1", "::1")
        return httpx2.AsyncClient(verify=self._certificates, timeout=None, trust_env=not local)


def _run(coroutine: Any) -> Any:
    """Runs it to its end from any thread, one with an event loop of its own (a notebook's) included."""
    with ThreadPoolExecutor(1, "reward-judge") as thread:
        return thread.submit(asyncio.run, coroutine).result()


def _endpoint(api: str) -> tuple[httpx2.URL, dict[str, str]]:
    """The endpoint's base without a user or password, and the headers that carry them instead."""
    try:
        url = httpx2.URL(api.rstrip("/").removesuffix("/chat/completions"))
    except (httpx2.InvalidURL, ValueError):
        url = httpx2.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        shown = printable(re.sub(r"//[^/]*@", "//", api))
        raise ValueError(f"judge.api must be a URL like http://127.0.0.1:8000/v1, got {shown!r}")
    headers = {"Content-Type": "application/json"}
    if url.userinfo:
        secret = base64.b64encode(f"{url.username}:{url.password}".encode()).decode()
        headers["Authorization"] = f"Basic {secret}"
    return url.copy_with(userinfo=b""), headers


async def _bounded(response: httpx2.Response) -> AsyncIterator[bytes]:
    size = 0
    async for piece in response.aiter_raw():
        size += len(piece)
        if size > MAX_REPLY_BYTES:
            raise ValueError(f"more than {MAX_REPLY_BYTES} bytes")
        yield piece


def _content(body: bytes) -> str | None:
    """The text of a chat completion, None where the body holds none."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return content.encode("utf-8", "replace").decode() if isinstance(content, str) else None


def _seconds(value: str) -> float:
    """A Retry-After in seconds; 0 for a date, which few endpoints send, and for what is no number."""
    try:
        seconds = float(value or 0.0)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0
