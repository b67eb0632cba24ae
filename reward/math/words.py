"""Answers in words, and words around an answer."""

import re
from typing import NamedTuple

from reward.math.commands import names
from reward.math.quantity import harmless
from reward.math.spelling import tidy

_TEXT = re.compile(r"\\(?:text|operatorname)\{([^{}]*)\}")
_FIRST_TEXT = re.compile(r"^\\text\{([^{}]*)\}\s*(?P<after>[:=]?)\s*(?=\S)")
_FIRST_WORDS = re.compile(r"^(?P<said>[A-Za-z][A-Za-z.,']*(?:\s+[A-Za-z][A-Za-z.,']*)*)\s*:?\s*(?=[-+]?[\d\\$(\[{.])")
_FIRST_CHINESE = re.compile(r"^(?:所以|因此|答案|约|大约|等于|结果|最终|[为是约得：:])+\s*(?=\S)")
_NEGATIVE = re.compile(r"^(?:\\text\{\s*(?:negative|minus)\s*\}|(?:negative|minus)\s)\s*(?=[\d\\(.])", re.IGNORECASE)
_VERB = re.compile(r"\s*\\text\{[^{}]*?(?:\bis|\bare|\bequals?|\bequal to)\s*:?\s*\}\s*(?=\S)")
_THEREFORE = re.compile(r"^(?:therefore|hence|thus|so|then)(?:\s*,\s*|\s+)(?=\S)", re.IGNORECASE)
_IS = re.compile(r"^(?P<said>[A-Za-z][A-Za-z ]*?)\s+(?:is equal to|equals?|is|are)\s+(?=[-+\d\\(\[{.$])")
# What makes another number of the one that follows: the reciprocal of 5, multiples of 5, divisible by 5.
_MAKES_ANOTHER = re.compile(
    r"\b(?:reciprocal|inverse|opposite|negation|complement|absolute|multiple|divisible|divisor|factor|divided|multiplied"
    r"|log|logarithm|sine|cosine|tangent|sum|product|difference|quotient|square|cube)s?\b"
    r"(?:(?!\b(?:is|are|equals?|equal)\b).)*\b(?:of|by)(?:\s+the)?\s*$",
    re.IGNORECASE,
)
_LABELS = names(
    "answer ans final the is are was approx approximately about around roughly nearly almost circa exactly equals "
    "equal to of so thus hence therefore result value total sum solution we get have it must be ca i.e ie that which "
    "gives a an only just simply"
)
_NAMES = names("sin cos tan cot sec csc log ln exp gcd lcm max min det mod lim arg sgn deg dim ker usd eur gbp rs")


def bare(text: str) -> str:
    """A tidied answer without words before it that change nothing: Answer: 5, approximately 5, the value of x is 5.
    `negative 5` becomes -5."""
    text = _NEGATIVE.sub("-", _THEREFORE.sub("", text))
    while match := _FIRST_TEXT.match(text):
        rest = text[match.end() :]
        said = match[1].strip()
        if match["after"] == "=" or not _introduces(said) or not _is_label(said, rest):
            break
        text = rest.strip()
    if match := _FIRST_CHINESE.match(text):
        text = text[match.end() :]
    if (match := _IS.match(text)) and harmless(match["said"]):
        named = re.search(r"(?:^| )([A-Za-z])$", match["said"])
        text = f"{named[1]} = {text[match.end() :]}" if named else text[match.end() :]
    if (match := _FIRST_WORDS.match(text)) and _are_labels(match["said"]):
        text = text[match.end() :]
    if (
        (match := _VERB.search(text))
        and match.start()
        and harmless(match[0][match[0].index("{") + 1 : match[0].rindex("}")])
    ):
        text = f"{text[: match.start()]} = {text[match.end() :]}"
    return text.lstrip(":=~ ").strip() if text.startswith((":", "=", "~")) else text


def _introduces(said: str) -> bool:
    """Whether words before a number say nothing about it."""
    return harmless(said) and not _MAKES_ANOTHER.search(said)


def _is_label(said: str, rest: str) -> bool:
    """Whether a text before the mathematics is no part of it (as the x of \\text{x}+1 is, or the P of \\text{P}(A))."""
    if re.match(r"[+*/^_<>=]|\\(?:cdot|times|div|le|ge|neq|in|cup|cap|land|lor|approx|equiv)(?![a-zA-Z])", rest):
        return False
    several = re.search(r"[:\s.]", said) is not None or said.lower() in _LABELS
    return several or (len(said) > 2 and re.match(r"[\d\\.$]", rest) is not None) or not said.isascii()


def _are_labels(said: str) -> bool:
    """Whether plain letters before a number are words, and no variables or functions."""
    parts = [part.strip(".,:'").lower() for part in said.split()]
    if not _introduces(said) or any(part in _NAMES for part in parts):
        return False
    return len(said) > 1 and all(part in _LABELS or len(part) > 3 for part in parts)


def unwrapped(text: str) -> str:
    """The answer with the contents of its \\text{...} in the open and single spaces."""
    text = tidy(text)
    while (shorter := _TEXT.sub(r"\1", text)) != text:
        text = shorter
    return " ".join(re.sub(r"[{}$]", " ", text).split()).strip(" .,;:")


class Words(NamedTuple):
    text: str
    marked: bool  # written as text, not as a product of variables


_ANNOUNCED = re.compile(
    r"^(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)*answer\s*(?:is\b|:|=)\s*:?\s*",
    re.IGNORECASE,
)
_SYNONYMS = {
    "dne": "does not exist",
    "no solutions": "no solution",
    "no real solution": "no solution",
    "no real solutions": "no solution",
    "none of these": "none of the above",
}


def words(text: str) -> Words | None:
    """An answer that is made of words only, without case; None for anything with digits, operators or commands."""
    plain = _ANNOUNCED.sub("", unwrapped(text)) or unwrapped(text)
    plain = re.sub(r"\s*\\land\s*", " and ", re.sub(r"\s*\\lor\s*", " or ", plain))
    if not re.fullmatch(r"[^\W\d_][^\W\d_' ,()-]*(?:[ ,()'-]+[^\W\d_]+)*\.?", plain) or not re.search(
        r"[^\W\d_]{2}|[^\W\d_a-zA-Z]", plain
    ):
        return None
    said = re.sub(r"[\s,-]+", " ", plain).casefold()
    return Words(_SYNONYMS.get(said, said), _TEXT.search(tidy(text)) is not None or " " in plain)
