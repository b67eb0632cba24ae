"""A language model as judge: what may be asked of one, over an OpenAI-compatible endpoint or a function, with a cache.

A judge is anything that takes a list of Questions and gives one text (or None, no answer) for each. A local model is
loaded elsewhere and handed in as such a function. What a policy writes ends up inside the judge's prompt: texts are
fenced and told apart from instructions, but a judge can be talked to. A rising judge reward alone is no proof of better
answers.
"""

import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from reward.text import extract_boxed


class Question(NamedTuple):
    """What a judge is asked. `sample` tells apart several answers to the same text; it is the seed of that answer."""

    text: str
    sample: int = 0


Judge = Callable[[Sequence[Question]], list[str | None]]

FENCE = "====="
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504, 529)
MAX_REPLY_BYTES = 4 << 20
MAX_WAIT_SECONDS = 60.0
CHARACTERS_A_TOKEN = 3
MIN_CHARACTERS = 2000


class ApiJudge:
    """A judge behind an OpenAI-compatible endpoint (vLLM, SGLang, llama.cpp, a hosted one).

    url: its base, as in http://127.0.0.1:8000/v1. timeout_seconds: for one answer, from first byte sent to last byte
    read. attempts: tries for one answer, with growing pauses, after time-outs, lost connections and overload; then the
    answer is None. A refusal that no retry can cure (bad key, unknown model) raises RuntimeError with what the endpoint
    said.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        temperature: float = 0.6,
        top_p: float = 0.95,
        max_tokens: int = 10_000,
        timeout_seconds: float = 300.0,
        attempts: int = 4,
        pause_seconds: float = 1.0,
        parallel: int = 16,
        api_key_variable: str = "",
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"judge.api must be a URL like http://127.0.0.1:8000/v1, got {url!r}")
        if api_key_variable and not os.environ.get(api_key_variable):
            raise ValueError(f"judge.api_key_variable names {api_key_variable}, which is not set in the environment")
        self.url = url.rstrip("/").removesuffix("/chat/completions")
        self.settings = {"model": model, "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
        self.timeout_seconds = timeout_seconds
        self.attempts = attempts
        self.pause_seconds = pause_seconds
        self.parallel = parallel
        local = urllib.parse.urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")
        self._opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
        self._headers = {"Content-Type": "application/json"}
        if api_key_variable:
            self._headers["Authorization"] = f"Bearer {os.environ[api_key_variable]}"

    def check(self) -> None:
        """ValueError when nothing answers at the URL; to be called before expensive work."""
        try:
            self._open("/models", None)
        except urllib.error.HTTPError as error:
            error.close()
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(
                f"judge.api: nothing answers at {self.url}: {error}; start the judge or fix the URL"
            ) from None

    def __call__(self, questions: Sequence[Question]) -> list[str | None]:
        with ThreadPoolExecutor(max(1, min(self.parallel, len(questions))), "reward-judge") as threads:
            return list(threads.map(self._ask, questions))

    def _ask(self, question: Question) -> str | None:
        message = {"role": "user", "content": question.text}
        body = json.dumps({**self.settings, "messages": [message], "seed": question.sample}).encode()
        for attempt in range(self.attempts):
            pause = self.pause_seconds * 2**attempt
            try:
                content = json.loads(self._open("/chat/completions", body))["choices"][0]["message"]["content"]
                if isinstance(content, str):
                    return content
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read(500).decode("utf-8", "replace")
                if error.code not in RETRIED:
                    raise RuntimeError(f"judge at {self.url} refuses with {error.code}: {said}") from None
                pause = max(pause, _seconds(error.headers.get("Retry-After")))
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
                pass
            if attempt + 1 < self.attempts:
                time.sleep(min(pause, MAX_WAIT_SECONDS))
        return None

    def _open(self, path: str, body: bytes | None) -> bytes:
        deadline = time.monotonic() + self.timeout_seconds
        request = urllib.request.Request(self.url + path, data=body, headers=self._headers)
        reply = b""
        with self._opener.open(request, timeout=self.timeout_seconds) as response:
            while piece := response.read1(1 << 16):
                reply += piece
                if time.monotonic() > deadline or len(reply) > MAX_REPLY_BYTES:
                    raise TimeoutError("the judge's answer takes too long")
        return reply


def _seconds(value: str | None) -> float:
    try:
        return float(value or 0.0)
    except ValueError:
        return 0.0


class CachedJudge:
    """Asks `judge` each question once and remembers the answers by content, the last `size` of them. None is not kept.

    `asked` and `answered_from_cache` count over the life of the object.
    """

    def __init__(self, judge: Judge, size: int = 1 << 16) -> None:
        self.judge = judge
        self.size = size
        self.asked = 0
        self.answered_from_cache = 0
        self._answers: OrderedDict[Question, str] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, questions: Sequence[Question]) -> list[str | None]:
        with self._lock:
            known: dict[Question, str | None] = {q: self._answers[q] for q in set(questions) if q in self._answers}
        new = [question for question in dict.fromkeys(questions) if question not in known]
        answers = self.judge(new) if new else []
        if len(answers) != len(new):
            raise RuntimeError(f"the judge gave {len(answers)} answers to {len(new)} questions")
        known.update(zip(new, answers, strict=True))
        with self._lock:
            self.asked += len(new)
            self.answered_from_cache += len(questions) - len(new)
            for question in questions:
                if (answer := known[question]) is not None:
                    self._answers[question] = answer
                    self._answers.move_to_end(question)
            while len(self._answers) > self.size:
                self._answers.popitem(last=False)
        return [known[question] for question in questions]


def build_judge(judge: Judge | None = None, *, api: str = "", model: str = "", **settings: Any) -> CachedJudge:
    """A judge with a cache: the function `judge`, or the endpoint `api`, which must answer now. settings: those of
    ApiJudge."""
    if judge is None:
        if not api:
            raise ValueError(
                "a judge needs judge.api, the URL of an OpenAI-compatible endpoint, or judge.local, a model"
            )
        endpoint = ApiJudge(api, model, **settings)
        endpoint.check()
        judge = endpoint
    return CachedJudge(judge)


def boxed_number(answer: str | None, allowed: Sequence[float]) -> float | None:
    """The number in the last \\boxed{} of a judge's answer when it is one of `allowed`, else None."""
    try:
        number = float(extract_boxed(answer or "") or "nan")
    except ValueError:
        return None
    return number if number in allowed else None


def character_budget(tokens: int) -> int:
    """Characters of material that fit into a question of `tokens` tokens, at a cautious three a token."""
    return max(MIN_CHARACTERS, tokens * CHARACTERS_A_TOKEN)


def fenced(title: str, text: str) -> str:
    """A text as a block that it cannot end by itself: what looks like a fence, or like the mark of a chat's turn,
    inside it is taken apart."""
    text = re.sub("={4,}", "= = =", text).replace("<|", "< |")
    return f"{FENCE} {title} {FENCE}\n{text}\n{FENCE} end of {title} {FENCE}"


def shortened(text: str, limit: int, *, keep_end: bool = False) -> str:
    """At most `limit` characters of `text`: its beginning and end, or with keep_end its end only."""
    if len(text) <= limit:
        return text
    tail = limit if keep_end else limit // 2
    head = "" if keep_end else text[: limit - tail]
    return f"{head}\n[... {len(text) - limit} characters left out ...]\n{text[len(text) - tail :]}"


def ask_samples(judge: Judge, texts: Sequence[str], samples: int) -> list[list[str | None]]:
    """`samples` answers to each text."""
    flat = judge([Question(text, sample) for text in texts for sample in range(samples)])
    return [flat[first : first + samples] for first in range(0, len(flat), samples)]


def judge_stats(counts: dict[str, Any]) -> dict[str, float]:
    return {f"reward/judge_{name}": float(value) for name, value in sorted(counts.items())}
