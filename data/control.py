"""Control tokens inside data: what a question, a turn or an answer holds of them is text, and tokenised as text.

A text is guarded by a CUT inside each control token that it holds. `encode` tokenises what stands between the cuts
piece by piece, so that no tokenizer finds the token; the text that people and rewards see is `uncut`. A text without a
control token is not changed, and has the ids that it always had.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from models.families.base import ChatFormat

CUT = "\ufdd0"
"""A code point that Unicode keeps free for uses of this kind: it is in no text."""
_MARKUP = re.compile(r"[<\[].*[>\]]", re.DOTALL)
_NAMED = r"<\|[^<>|\s]+\|>"
_OPENED_OR_CLOSED = r"<\|\w+>|<\w+\|>"
"""As DiffusionGemma has them: <|turn>, <turn|>."""


@dataclass(frozen=True)
class ControlTokens:
    """in_prompts: matches a token that a question or a turn cannot write; in_responses: one that a response cannot. A
    response writes <think> and its like."""

    in_prompts: re.Pattern[str]
    in_responses: re.Pattern[str]

    @staticmethod
    def of_tokenizer(tokenizer: Any) -> "ControlTokens":
        """All special tokens of a tokenizer; in questions also added ones that look like markup (<think>)."""
        special = {str(token) for token in tokenizer.all_special_tokens}
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special |= {token.content for token in added if token.special}
        markup = {token.content for token in added if _MARKUP.fullmatch(token.content)}
        return ControlTokens(_any_of(special | markup), _any_of(special))

    @staticmethod
    def of_chat(chat: ChatFormat | None) -> "ControlTokens":
        """Where no tokenizer is at hand: those of a family's chat; in questions everything of the form <|name|>."""
        names = ("turn", "assistant", "opened_response", "end_of_turn", "thinking_assistant")
        written = "\n".join(getattr(chat, name) or "" for name in names if chat is not None)
        special = set(re.findall(f"{_NAMED}|{_OPENED_OR_CLOSED}", written))
        in_prompts = _any_of(special | set(re.findall(r"<\w+>", written)))
        return ControlTokens(re.compile(f"{_NAMED}|{in_prompts.pattern}"), _any_of(special))

    def guard(self, text: str) -> str:
        """A question or a turn, with a cut inside each control token."""
        return _cut(text, self.in_prompts)

    def guard_response(self, text: str, end_of_turn: str | None = None) -> str:
        """A response, with a cut inside each control token but the end of turn that it ends with."""
        ended = end_of_turn is not None and text.endswith(end_of_turn)
        body = text.removesuffix(end_of_turn) if ended and end_of_turn is not None else text
        return _cut(body, self.in_responses) + text[len(body) :]

    def guard_turn(self, role: str, content: str) -> str:
        return self.guard_response(content) if role == "assistant" else self.guard(content)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a guarded text."""
    return encode_all(tokenizer, [text])[0]


def encode_all(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of guarded texts, each piece between cuts by itself."""
    pieces = [[piece for piece in text.split(CUT) if piece] for text in texts]
    flat = [piece for of_text in pieces for piece in of_text]
    ids = iter(tokenizer(flat, add_special_tokens=False)["input_ids"] if flat else [])
    return [[token_id for _ in of_text for token_id in next(ids)] for of_text in pieces]


def uncut(text: str) -> str:
    """A guarded text as people see it: as it was."""
    return text.replace(CUT, "")


def spaced(text: str) -> str:
    """A guarded text for a file that any tokenizer may read: a space in place of each cut."""
    return text.replace(CUT, " ")


def _any_of(tokens: Collection[str]) -> re.Pattern[str]:
    """Matches one of the tokens, the longest first; nothing where there is none. A single character cannot be cut."""
    cuttable = sorted((token for token in tokens if len(token) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, cuttable)) or r"(?!)")


def _cut(text: str, token: re.Pattern[str]) -> str:
    text, pieces = text.replace(CUT, ""), []
    start = 0
    while found := token.search(text, start):
        pieces.append(text[start : found.start() + 1])
        start = found.start() + 1
    return CUT.join([*pieces, text[start:]])
