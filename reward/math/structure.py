"""Where an answer falls into parts: lists, brackets, relations, joined cases."""

import re
from typing import NamedTuple

_OPEN, _CLOSE = "([{", ")]}"
LIST = re.compile(
    r"[,;]|\\land(?![a-zA-Z])|\\lor(?![a-zA-Z])|(?<![a-zA-Z\\{])(?:and|or)(?![a-zA-Z])|或者|以及|并且|[或和与及且]"
)
RELATION = re.compile(r"\\(?:le|ge|neq|approx|Rightarrow|equiv|in|notin)(?![a-zA-Z])|[<>=]")


def depth(text: str) -> int:
    """How deep the brackets of a text are nested."""
    level, deepest = 0, 0
    for character in text:
        level += (character in _OPEN) - (character in _CLOSE)
        deepest = max(deepest, level)
    return deepest


def closing(text: str, opening: int) -> int:
    """Where the bracket that opens at `opening` is closed (by a bracket of any kind: [0, 1) is one), or -1."""
    depth = 0
    for position in range(opening, len(text)):
        depth += (text[position] in _OPEN) - (text[position] in _CLOSE)
        if depth == 0:
            return position
    return -1


def split(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """The parts between separators outside of all brackets, and the separators."""
    parts, found, start, depth, position = list[str](), list[str](), 0, 0, 0
    for match in separator.finditer(text):
        for character in text[position : match.start()]:
            depth += (character in _OPEN) - (character in _CLOSE)
        position = match.start()
        if depth == 0:
            parts.append(text[start : match.start()].strip())
            found.append(match[0])
            start = match.end()
    return [*parts, text[start:].strip()], found


def elements(text: str) -> list[str]:
    """The parts of a list (1, 2 and 3), one where it is none."""
    return [part for part in split(text, LIST)[0] if part]


class Bracketed(NamedTuple):
    opening: str
    inner: str
    closing: str


def bracketed(text: str) -> Bracketed | None:
    """An answer in one pair of brackets: a tuple, a point, an interval ([0, 1) too), or a set, opened by `\\{`."""
    start = 1 if text.startswith(r"\{") else 0
    if len(text) < start + 2 or text[start] not in _OPEN or closing(text, start) != len(text) - 1:
        return None
    if text[start] == "{" and not (start and text.endswith(r"\}")):
        return None
    return Bracketed(text[start], text[start + 1 : -1 - start].strip(), text[-1])
