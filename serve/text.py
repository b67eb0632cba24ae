"""Token ids -> text that is never taken back, token by token, up to a stop text."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sample.session import Update


class Token(NamedTuple):
    """A token of an answer with the text that it adds, its denoising step and its log-probability."""

    id: int
    text: str
    step: int
    logprob: float


class Piece(NamedTuple):
    """What is added to an answer. finish_reason: of the last piece: "stop" or "length"; else None."""

    text: str
    tokens: list[Token]
    finish_reason: str | None = None


class TokenTexts:
    """The text that each token adds to those before it. A character of several tokens comes with the last of them."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self._ids = tokenizer, list[int]()
        self._start = self._read = 0

    def add(self, token_id: int) -> str:
        self._ids.append(token_id)
        added = self._added()
        if added.endswith("\ufffd"):  # a character that is not complete
            return ""
        if added:
            self._start, self._read = self._read, len(self._ids)
        return added

    def rest(self) -> str:
        """What an answer that ends inside a character adds."""
        return self._added()

    def _added(self) -> str:
        """Decoded after the tokens before, since some tokenizers treat the first one in its own way."""
        before, now = self._decode(self._ids[self._start : self._read]), self._decode(self._ids[self._start :])
        return now[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class AnswerText:
    """One answer as it grows. stops: texts that end it; they are no part of it, and what may be the beginning of one is
    held back. tokens: handed out so far, and the stop id that ended the response; steps: that decided them."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()):
        self._texts, self._stops = TokenTexts(tokenizer), stops
        self._held: list[Token] = []
        self.text = ""
        self.tokens = 0
        self.steps = 0

    def feed(self, update: Update) -> Piece:
        """The next piece. An answer that ends by a stop text has a finish_reason before its last update."""
        rollout = update.rollout
        ids = update.ids[:-1] if rollout is not None and rollout.finish_reason == "stop" else update.ids
        for token_id, step, logprob in zip(ids, update.step_map, update.logprobs, strict=False):
            self._held.append(Token(token_id, self._texts.add(token_id), step, logprob))
        self.steps = max([self.steps, *update.step_map])
        held = "".join(token.text for token in self._held) + (self._texts.rest() if rollout is not None else "")
        place = min((at for stop in self._stops if (at := held.find(stop)) >= 0), default=None)
        if place is not None:
            return self._release(held, place, "stop", cut=True)
        if rollout is not None:
            self.tokens += len(update.ids) - len(ids)
            return self._release(held, len(held), rollout.finish_reason)
        return self._release(held, len(held) - self._possible_stop(held))

    def _possible_stop(self, text: str) -> int:
        """Characters at the end of a text that a stop may begin with."""
        longest = max(map(len, self._stops), default=1) - 1
        sizes = range(min(longest, len(text)), 0, -1)
        return next((size for size in sizes if any(stop.startswith(text[-size:]) for stop in self._stops)), 0)

    def _release(self, held: str, end: int, finish_reason: str | None = None, cut: bool = False) -> Piece:
        """Hands out the tokens whose text ends at `end` or before; of a cut text also the one that it cuts."""
        released, length = 0, 0
        for token in self._held:
            if length >= end if cut else length + len(token.text) > end:
                break
            length += len(token.text)
            released += 1
        tokens, self._held = self._held[:released], self._held[released:]
        self.tokens += released
        text = held[:length] if finish_reason is None else held[:end]
        self.text += text
        return Piece(text, tokens, finish_reason)
