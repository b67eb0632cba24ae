"""Short answers to questions about pictures: yes or no, the letter of an option, a number within a tolerance, words."""

import re
from collections.abc import Sequence
from fractions import Fraction

from reward.math.numbers import plain_number
from reward.math.options import chosen_option
from reward.math.quantity import quantity_of
from reward.math.reward import MathReward
from reward.math.spelling import tidy
from reward.math.words import unwrapped
from reward.text import stated_answer

_LETTER = re.compile(r"[(\[]?([A-Z])[)\].]?")
_LEADING = re.compile(r"(?!no\.\s*\d)(yes|no)(?=$|[\s]*[,.;:!])")  # not `No. 5`
_REMARK = frozenset(
    (
        "a",
        "all",
        "altogether",
        "an",
        "are",
        "here",
        "in",
        "is",
        "of",
        "overall",
        "shown",
        "the",
        "them",
        "there",
        "these",
        "total",
        "visible",
    )
)
"""Words behind a number that name nothing."""
_SENTENCE_END = re.compile(r"(?<=\w)[.!](?:\s|$)")


class ShortReward(MathReward):
    """1.0 where the answer (`stated_answer`) is the task's `ground_truth_answer`, else 0.0; None where the task has no
    answer. By the kind of the true answer: yes or no; the letter of an option; the same words; a number that differs by
    `tolerance` of the true one at most; else as mathematics, but what is counted is not another thing."""

    def __init__(self, *, workers: int, timeout_seconds: float, in_box: bool, tolerance: float) -> None:
        super().__init__(workers=workers, timeout_seconds=timeout_seconds, in_box=in_box)
        self.tolerance = tolerance

    def verdicts(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        answers = [stated_answer(completion, self.in_box) for completion, _ in pairs]
        found = [
            answer is not None and short_verdict(answer, true, self.tolerance)
            for answer, (_, true) in zip(answers, pairs, strict=True)
        ]
        left = [
            (f"\\boxed{{{answer}}}", true)
            for answer, (_, true), verdict in zip(answers, pairs, found, strict=True)
            if verdict is None
        ]
        graded = iter(super().verdicts(left))
        return [next(graded) if verdict is None else verdict for verdict in found]


def short_verdict(answer: str, true: str, tolerance: float = 0.0) -> bool | None:
    """Whether `answer` is the true one; None where only mathematics can tell."""
    if (said := yes_or_no(true)) is not None:
        return yes_or_no(answer) == said
    if letter := _LETTER.fullmatch(true.strip()):
        return chosen_option(answer) == letter[1]
    first = _SENTENCE_END.split(answer, maxsplit=1)[0]
    if _plain(true) in (_plain(answer), _plain(first)):
        return True
    if _counts_another(first, true):
        return False
    given, expected = _number(first), _number(true)
    if (
        tolerance
        and given is not None
        and expected is not None
        and abs(given - expected) <= Fraction(tolerance) * abs(expected)
    ):
        return True
    return None


def yes_or_no(text: str) -> str | None:
    """`yes` or `no` of an answer that is one of them, alone or before a comma or a full stop; None of any other, and of
    one that has both."""
    said = unwrapped(text.replace("*", "")).strip(" \"'").casefold()
    if said in ("y", "n"):
        return "yes" if said == "y" else "no"
    found = _LEADING.match(said)
    if found is None:
        return None
    other = "no" if found[1] == "yes" else "yes"
    return None if re.search(rf"\b{other}\b", said) else found[1]


def _plain(text: str) -> str:
    return unwrapped(text).strip(" *\"'").casefold()


def _counts_another(answer: str, true: str) -> bool:
    """Whether the true answer is a number of something (4 circles) and `answer` one of something else (4 squares).
    Words more or fewer are the same thing (4 red circles), and so is the plural."""
    read = quantity_of(tidy(true))
    if _number(read.head) is None:
        return False
    counted, said = _counted(read.noun), _counted(quantity_of(tidy(answer)).noun)
    return not (counted <= said or said <= counted)


def _counted(noun: str) -> set[str]:
    """The words of a noun, each in the singular, without remarks."""
    return {_singular(word) for word in re.findall(r"[^\W\d_]+", noun)} - _REMARK


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if word.endswith(("sses", "shes", "ches", "xes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _number(text: str) -> Fraction | None:
    return plain_number(text.strip(" *$%").replace(",", ""))
