"""A request's answers seen from the event loop: pieces of text as they come, until all are complete."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from models import Prompt
from sample.draw import Drawing
from serve.engine import Engine, Event, Job
from serve.protocol import Asked
from serve.settings import ServeSettings
from serve.text import AnswerText, Piece

LEAST_TEMPERATURE = 1e-4
"""Below it answers are greedy: logits divided by less overflow in fp32."""


def drawing_of(asked: Asked, settings: ServeSettings) -> Drawing:
    """How tokens are drawn: as asked, else as the server's settings say."""
    wanted = (asked.temperature, None if asked.top_k is None else max(0, asked.top_k), asked.top_p)
    usual = (settings.temperature, settings.top_k, settings.top_p)
    temperature, top_k, top_p = (own if own is not None else other for own, other in zip(wanted, usual, strict=True))
    assert temperature is not None and top_k is not None and top_p is not None
    return Drawing(0.0 if temperature < LEAST_TEMPERATURE else temperature, int(top_k), top_p)


class Answers:
    """n answers to each prompt of a request. `start` submits it and raises what `Engine.submit` does, before anything
    is sent; whoever starts it must `close` it, which frees the slots of those that are open."""

    def __init__(self, engine: Engine, prompts: Sequence[Prompt], asked: Asked, settings: ServeSettings):
        self._engine, self._loop = engine, asyncio.get_running_loop()
        self._begun = self._loop.time()
        self._deadline = self._begun + settings.timeout_seconds
        self.first_text_seconds: float | None = None
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        room = settings.max_new_tokens or engine.sequence_tokens
        if asked.most_tokens is None:  # as long as there is room
            room = min(room, engine.sequence_tokens - max(len(prompt.ids) for prompt in prompts))
        self.job = Job(
            prompts=prompts,
            n=asked.n,
            max_new_tokens=asked.most_tokens or max(1, room),
            seed=secrets.randbits(62) if asked.seed is None else asked.seed,
            drawing=drawing_of(asked, settings),
            deliver=self._deliver,
        )
        self.texts: list[AnswerText] = []
        self._stops = asked.stops

    def start(self) -> None:
        self._engine.submit(self.job)  # which refuses too many
        tokenizer: Any = self._engine.tokenizer
        self.texts = [AnswerText(tokenizer, self._stops) for _ in range(self.job.choices)]

    def close(self) -> None:
        self._engine.cancel(self.job)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(choice, piece) as they come. TimeoutError after the settings' time; `Unavailable` where the engine ends."""
        unfinished = set(range(self.job.choices))
        while unfinished:
            async with asyncio.timeout_at(self._deadline):
                choice, update, error = await self._events.get()
            if error is not None or update is None:
                raise error or AssertionError("an event without an update")
            if choice not in unfinished:  # it was cut by a stop text
                continue
            piece = self.texts[choice].feed(update)
            if piece.text and self.first_text_seconds is None:
                self.first_text_seconds = self._loop.time() - self._begun
            if piece.finish_reason is not None:
                unfinished.discard(choice)
                if update.rollout is None:
                    self._engine.cancel(self.job, choice)
            yield choice, piece

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt.ids) for prompt in self.job.prompts)

    @property
    def usage(self) -> dict[str, int]:
        completion = sum(text.tokens for text in self.texts)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }

    def _deliver(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
