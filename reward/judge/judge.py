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
    """What a judge is asked. `sample` tells apart several answers to the same text; it is the seed of that answer."""

    text: str
    sample: int = 0


Judge = Callable[[Sequence[Question]], list[str | None]]

FENCE = "====="
CHARACTERS_A_TOKEN = 3
MIN_CHARACTERS = 2000


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


def build_judge(judge: Judge | None = None, **settings: Any) -> CachedJudge:
    """A judge with a cache: the function `judge`, or the endpoint of `settings`, keys of a config's `judge` section
    (api, model, ...); it must answer now."""
    if judge is None:
        if not settings.get("api"):
            raise ValueError(
                "a judge needs judge.api, the URL of an OpenAI-compatible endpoint, or judge.local, a model"
            )
        from configs.schema import JudgeConfig  # here: not every process that grades needs a judge's libraries
        from reward.judge.api import ApiJudge

        endpoint = ApiJudge(JudgeConfig(**settings))
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
