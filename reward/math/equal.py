"""Whether two mathematical answers are equal. Runs inside the workers of reward.math: sympy can take for ever."""

import cmath
import logging
import re
from functools import lru_cache
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import E, Expr, Mul, Symbol, UnevaluatedExpr
from sympy.core.relational import Relational

from reward.math.text import base_of, bracketed, letters, option_letter, tidy, unit_of, without_unit, words

for _name in ("math_verify", "latex2sympy2_extended"):
    logging.getLogger(_name).setLevel(logging.ERROR)

_POINTS = ((1.3719, 2.6143, 0.5171, 3.2907, 1.8113), (0.2917, 1.1379, 2.3551, 0.7333, 4.1927))
_TOLERANCE = 1e-5
_CONFIG = (LatexExtractionConfig(boxed_match_priority=0),)


def answers_equal(prediction: str, answer: str) -> bool:
    """The verdict on two answers without their boxes. No deadline of its own.

    What is text (words, options, units, number bases) is compared as text, the rest by math-verify.
    """
    verdict = text_verdict(prediction, answer)
    if verdict is not None:
        return verdict
    given, true = bracketed(prediction), bracketed(answer)
    if given and true and len(given.parts) == len(true.parts):
        same_brackets = (given.opening, given.closing) == (true.opening, true.closing)
        return same_brackets and all(map(answers_equal, given.parts, true.parts))
    return parsed_equal(prediction, answer)


def parsed_equal(prediction: str, answer: str) -> bool:
    """math-verify's verdict alone; intervals and inequalities may stand for each other.

    An equation between constants (0.56 = 56%) means its last side: as equations, all of them would be equal.
    """
    gold, given = list(_parsed(answer)), list(_parsed(prediction))
    if any(isinstance(item, Relational) and not item.free_symbols for item in (*gold, *given)):
        last_sides = prediction.rpartition("=")[2], answer.rpartition("=")[2]
        if last_sides != (prediction, answer):
            return parsed_equal(*last_sides)
    if gold and given and numerically_different(gold[0], given[0]):
        return False
    return verify(gold, given, allow_set_relation_comp=True, timeout_seconds=None)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[Any, ...]:
    return tuple(parse(f"\\boxed{{{without_unit(tidy(text))}}}", _CONFIG, parsing_timeout=None))


def numerically_different(a: Any, b: Any) -> bool:
    """Whether two expressions certainly differ: they have the same variables and other values at some point.

    Settles most wrong answers without the slow search for a proof that they are equal. Percentages (which may equal
    their number), products of letters (which may be words) and values that are not finite are left to that search.
    """
    if not all(isinstance(item, Expr) and not item.has(UnevaluatedExpr) for item in (a, b)):
        return False
    names = {symbol.name for symbol in a.free_symbols}
    if names != {symbol.name for symbol in b.free_symbols} or any(_is_word(item) for item in (a, b)):
        return False
    for point in _POINTS:
        first, second = (_value(item, dict(zip(sorted(names), point, strict=False))) for item in (a, b))
        if first is None or second is None:
            return False
        if abs(first - second) > _TOLERANCE * max(1.0, abs(first), abs(second)):
            return True
    return False


def _is_word(item: Expr) -> bool:
    return all(isinstance(factor, Symbol) or factor == E for factor in Mul.make_args(item))


def _value(item: Expr, point: dict[str, float]) -> complex | None:
    if len(point) < len(item.free_symbols):
        return None
    try:
        value = complex(item.evalf(20, subs={symbol: point[symbol.name] for symbol in item.free_symbols}))
    except (TypeError, ValueError, OverflowError, ArithmeticError, AttributeError):
        return None
    return value if cmath.isfinite(value) else None


def text_verdict(prediction: str, answer: str) -> bool | None:
    """The verdict where reading both as text settles it, else None."""
    given, true = tidy(prediction), tidy(answer)
    if not given:
        return not true
    if re.sub(r"\s+", "", given) == re.sub(r"\s+", "", true):
        return True
    if (option := option_letter(answer)) and (chosen := option_letter(prediction)):
        return chosen == option
    if len(many := letters(answer)) > 1 and (listed := letters(prediction)):
        return set(listed) == set(many)
    if (said := words(prediction)) and (meant := words(answer)):
        if said.text == meant.text:
            return True
        if said.marked or meant.marked:
            return False
    for part in (unit_of, base_of):
        if (mine := part(given)) and (theirs := part(true)) and mine != theirs:
            return False
    if (unit := unit_of(true)) and unit[0] in ("am", "pm"):  # a time of day, not a ratio
        return _hour(given) == _hour(true)
    return None


def _hour(text: str) -> str:
    return re.sub(r"\\[,!;: ]|[\s.]", "", without_unit(text))
