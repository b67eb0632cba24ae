"""A language model as judge: what may be asked of one, with a cache.

A judge is anything that takes a list of Questions and gives one text (or None, no answer) for each. A local model is
loaded elsewhere and handed in as such a function. What a policy writes ends up inside the judge's prompt: texts are
fenced and told apart from instructions, but a judge can be talked to. A rising judge reward alone is no proof of better
answers.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from reward.text import extract_boxed


class Question(NamedTuple):
    """What a judge is asked. `sample` tells apart several answers to the same text; it is the seed of that answer.
    `pictures`: files or their bytes, which the text is about."""

    text: str
    sample: int = 0
    pictures: tuple[str | bytes, ...] = ()


Judge = Callable[[Sequence[Question]], list[str | None]]

FENCE = "====="
CHARACTERS_A_TOKEN = 3  # a cautious guess
MIN_CHARACTERS = 2000
BLOCKS = 3  # of a question that may be long


class CachedJudge:
    """Asks `judge` each question once and remembers the answers by content, the last `size` of them. None is not
    kept."""

    def __init__(self, judge: Judge, size: int = 1 << 16) -> None:
        self.judge = judge
        self.size = size
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
            for question in questions:
                if (answer := known[question]) is not None:
                    self._answers[question] = answer
                    self._answers.move_to_end(question)
            while len(self._answers) > self.size:
                self._answers.popitem(last=False)
        return [known[question] for question in questions]


def boxed_number(answer: str | None, allowed: Sequence[float]) -> float | None:
    """The number in the last \\boxed{} of a judge's answer when it is one of `allowed`, else None."""
    try:
        number = float(extract_boxed(answer or "") or "nan")
    except ValueError:
        return None
    return number if number in allowed else None


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


class Panel:
    """A judge that is asked each text `samples` times, in questions of about `max_prompt_tokens` tokens."""

    def __init__(self, judge: Judge, samples: int, max_prompt_tokens: int) -> None:
        if samples < 1:
            raise ValueError(f"judge.samples must be 1 or more, got {samples}")
        self._judge, self._samples = judge, samples
        self._max_block_characters = max(MIN_CHARACTERS, max_prompt_tokens * CHARACTERS_A_TOKEN) // BLOCKS

    def ask(
        self, texts: Sequence[str], pictures: Sequence[tuple[str | bytes, ...]] | None = None
    ) -> list[list[str | None]]:
        """The answers to each text, with its pictures where there are any."""
        seen = pictures or [()] * len(texts)
        asked = zip(texts, seen, strict=True)
        answers = self._judge([Question(text, sample, each) for text, each in asked for sample in range(self._samples)])
        return [answers[first : first + self._samples] for first in range(0, len(answers), self._samples)]

    def block(self, title: str, text: str, *, keep_end: bool = False) -> str:
        """A text as one of the blocks of a question, fenced and shortened to its share of it."""
        return fenced(title, shortened(text, self._max_block_characters, keep_end=keep_end))


def judge_stats(counts: dict[str, Any]) -> dict[str, float]:
    return {f"reward/judge_{name}": float(value) for name, value in sorted(counts.items())}
