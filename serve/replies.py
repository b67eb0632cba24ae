"""A request's answers in OpenAI's forms: one object, or chunks of server-sent events."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve.answers import Answers
from serve.protocol import Asked, chat_logprobs, text_logprobs
from serve.text import Piece, Token


class Reply:
    """Of one request. Subclasses say what a choice and a chunk of one look like."""

    prefix, of_whole, of_chunk = "", "", ""

    def __init__(self, answers: Answers, asked: Asked, name: str):
        self.answers, self.asked = answers, asked
        self.head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": name}

    async def whole(self) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        tokens: list[list[Token]] = [[] for _ in self.answers.texts]
        reasons: list[str | None] = [None for _ in tokens]
        async for choice, piece in self.answers.pieces():
            tokens[choice] += piece.tokens
            reasons[choice] = piece.finish_reason
        choices = [
            self.choice(text.text, own) | self._shared(i, own, 0, reason)
            for i, (text, own, reason) in enumerate(zip(self.answers.texts, tokens, reasons, strict=True))
        ]
        return self.head | {"object": self.of_whole, "choices": choices, "usage": self.answers.usage}

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events: chunks of text that is never taken back, usage where it is asked for, [DONE]."""
        more = {"usage": None} if self.asked.includes_usage else {}
        for event in self.opening():
            yield self._chunk([event], more)
        async for choice, piece in self.answers.pieces():
            shown = piece.text or piece.finish_reason
            if shown or (piece.tokens and (self.asked.step_map or self.asked.wants_logprobs)):
                offset = len(self.answers.texts[choice].text) - len(piece.text)
                shared = self._shared(choice, piece.tokens, offset, piece.finish_reason)
                yield self._chunk([self.part(piece) | shared], more)
        if self.asked.includes_usage:
            yield self._chunk([], {"usage": self.answers.usage})
        yield "data: [DONE]\n\n"

    def _chunk(self, choices: list[dict[str, Any]], more: dict[str, Any]) -> str:
        return EventStream.event(self.head | {"object": self.of_chunk, "choices": choices} | more)

    def _shared(self, choice: int, tokens: list[Token], offset: int, reason: str | None) -> dict[str, Any]:
        logprobs = self.logprobs(tokens, offset) if self.asked.wants_logprobs else None
        shared: dict[str, Any] = {"index": choice, "logprobs": logprobs, "finish_reason": reason}
        if self.asked.step_map:
            shared |= {"token_ids": [t.id for t in tokens], "step_map": [t.step for t in tokens]}
        return shared

    def opening(self) -> list[dict[str, Any]]:
        return []

    def choice(self, text: str, tokens: list[Token]) -> dict[str, Any]:
        raise NotImplementedError

    def part(self, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError

    def logprobs(self, tokens: list[Token], offset: int) -> dict[str, Any]:
        raise NotImplementedError


class ChatReply(Reply):
    prefix, of_whole, of_chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [{"index": i, "delta": delta, "finish_reason": None} for i in range(len(self.answers.texts))]

    def choice(self, text: str, tokens: list[Token]) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def part(self, piece: Piece) -> dict[str, Any]:
        return {"delta": {"content": piece.text} if piece.text else {}}

    def logprobs(self, tokens: list[Token], offset: int) -> dict[str, Any]:
        return chat_logprobs(tokens)


class TextReply(Reply):
    prefix, of_whole, of_chunk = "cmpl", "text_completion", "text_completion"

    def choice(self, text: str, tokens: list[Token]) -> dict[str, Any]:
        return {"text": text}

    def part(self, piece: Piece) -> dict[str, Any]:
        return {"text": piece.text}

    def logprobs(self, tokens: list[Token], offset: int) -> dict[str, Any]:
        return text_logprobs(tokens, offset)


class EventStream(StreamingResponse):
    """Server-sent events; `on_end` is called once, with whether the client left before the end."""

    def __init__(self, events: AsyncIterator[str], on_end: Callable[[bool], None]):
        super().__init__(self._until_end(events), headers={"Cache-Control": "no-cache"}, media_type="text/event-stream")
        self._on_end, self._is_whole = on_end, False

    @staticmethod
    def event(content: dict[str, Any]) -> str:
        return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"

    async def _until_end(self, events: AsyncIterator[str]) -> AsyncIterator[str]:
        async for event in events:
            yield event
        self._is_whole = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end(not self._is_whole)
