"""Residue classes: 3 (mod 7), x ≡ 3 (mod 7), n ≡ 1, 4 (mod 5)."""

import re
from typing import NamedTuple

from reward.math.parse import parsed
from reward.math.structure import elements
from reward.math.value import exact

_MODULUS = re.compile(r"\(?\s*\\pmod\{([^{}]*)\}\s*\)?")
_LEFT = re.compile(r"^.*(?:\\equiv(?![a-zA-Z])|=)")


class Classes(NamedTuple):
    """`residues` modulo `modulus`, as written and reduced."""

    written: frozenset[int]
    reduced: frozenset[int]
    modulus: int


def is_congruence(text: str) -> bool:
    return r"\pmod{" in text


def classes(text: str) -> Classes | None:
    """The residue classes of a tidied answer; None where they cannot be read or have several moduli."""
    moduli = {_whole(modulus) for modulus in _MODULUS.findall(text)}
    if len(moduli) != 1:
        return None
    modulus = moduli.pop()
    numbers = [_whole(_LEFT.sub("", part)) for part in elements(_MODULUS.sub(" ", text))]
    if not modulus or not numbers or None in numbers:
        return None
    known = frozenset(number for number in numbers if number is not None)
    return Classes(known, frozenset(number % abs(modulus) for number in known), abs(modulus))


def same_classes(given: str, true: str) -> bool | None:
    """Whether two answers mean the same residue classes, one of which may be a bare residue; None where that cannot be
    read."""
    first, second = (classes(text) if is_congruence(text) else None for text in (given, true))
    if first and second:
        return (first.reduced, first.modulus) == (second.reduced, second.modulus)
    read = first or second
    if read is None:
        return None
    numbers = [_whole(_LEFT.sub("", part)) for part in elements(true if read is first else given)]
    if None in numbers:
        return None
    return frozenset(numbers) in (read.written, read.reduced)


def _whole(text: str) -> int | None:
    made = parsed(text.strip())
    number = None if made is None or not hasattr(made, "free_symbols") else exact(made)
    return int(number) if number is not None and number.denominator == 1 else None
