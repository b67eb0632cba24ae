"""What a data set's true answer says: the final answer of a solution, or that there is none."""

import re
from typing import Any

from reward.text import extract_boxed

_MARK = "####"  # GSM8K: the solution, then #### and the number
_WITHOUT_ANSWER = frozenset(("proof", "notfound", "not found", "n/a", "null", "nan", "see solution"))
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf)\s*\{([^{}]*)\}")
_MAX_WORDS = 15


def answer_text(answer: Any) -> str:
    """A task's true answer as text; "" where it has none. Data files hold numbers as well as texts. Of a solution it is
    what stands behind #### or in the last box. Words that data sets have in place of one (proof, n/a) are none."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return ""
    text = final_answer(str(answer))
    said = _WRAPPED.sub(r"\1", text).strip(" .$").casefold()
    return "" if said in _WITHOUT_ANSWER else text


def final_answer(text: str) -> str:
    """The part of a true answer that an answer must equal."""
    text = text.strip()
    if _MARK in text and (number := text.rpartition(_MARK)[2].strip()):
        return number
    if r"\boxed" in text or r"\fbox" in text:
        return extract_boxed(text) or text
    return text


def is_solution(answer: Any) -> bool:
    """Whether a true answer is a whole solution without a mark of its final answer: no answer can equal it."""
    words = re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}", answer_text(answer))
    return len(words) > _MAX_WORDS
