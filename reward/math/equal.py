"""Whether two mathematical answers are equal. Runs inside the workers of reward.math: sympy can take for ever.

Both are brought to one spelling (spelling, latex, characters), then the first rule that can read both decides: words
and options, residue classes, sets, lists, equations, tuples, times and ratios, quantities, expressions. math-verify has
the last word on what values do not settle.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import is_expr_of_only_symbols
from sympy import And, Expr, Number
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational

from reward.math.congruence import is_congruence, same_classes
from reward.math.expression import same_expression
from reward.math.measure import same_quantity
from reward.math.options import letters, option_letter
from reward.math.parse import parsed
from reward.math.quantity import is_sum, quantity_of
from reward.math.sets import BUILDER, INEQUALITY, may_be_set, pieces, solutions
from reward.math.spelling import tidy
from reward.math.structure import bracketed, depth, elements, split
from reward.math.thousands import surely_joined, without_commas
from reward.math.value import same_value
from reward.math.words import bare, words

_AND = re.compile(r"[,;和与及且以并]|\\land(?![a-zA-Z])|(?<![a-zA-Z\\{])and(?![a-zA-Z])")
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![a-zA-Z])")
_EQUALS = re.compile(r"=")
_APPROXIMATELY = re.compile(r"\\approx(?![a-zA-Z])")
_FOLLOWS = re.compile(r"\\Rightarrow(?![a-zA-Z])")
_CLOCK = re.compile(r"\d\d")
_COLON = re.compile(r":")
_NAME = re.compile(r"[a-zA-Z](?:_(?:\w|\{\w+\}))?|\\[a-z]+\s*")
_PRIMED = re.compile(r"[a-zA-Z](?:_\w|_?\{\w+\})?'+(?![a-zA-Z])|(?<![a-z])[a-zA-Z]'+")  # x', A'BC; not John's
_MARKED = re.compile(r"-?[\d.]+\s*('+|\")")
_IN_TEXT = re.compile(r"\\text\{[^{}]*\}")
_FIRST_TEXT = re.compile(r"^\\text\{([^{}]*)\}")
_POINT = re.compile(r"^[A-Z]'*(?=\()")  # A(1,2)
_BASE = re.compile(r"-?[0-9A-Za-z.]+_\s*\{?\s*(?:\\text\{)?\s*(\d+)\s*\}*")
_MAX_DEPTH = 50  # the parser needs time that grows with a power of it
_MAX_SIGNS = 3
_MAX_ELEMENTS = 60


def answers_equal(prediction: str, answer: str) -> bool:
    """The verdict on two answers without their boxes. No deadline of its own."""
    if max(depth(prediction), depth(answer)) > _MAX_DEPTH:
        return False
    given, true = surely_joined(tidy(prediction)), surely_joined(tidy(answer))
    if not given:
        return not true
    if _equal(given, true):
        return True
    merged = without_commas(given), without_commas(true)
    return merged != (given, true) and _equal(*merged)


def _equal(given: str, true: str) -> bool:
    if _squeezed(given) == _squeezed(true):
        return True
    for rule in _RULES:
        verdict = rule(given, true)
        if verdict is not None:
            return verdict
    shorter = bare(given), bare(true)
    if shorter != (given, true):
        return _equal(*shorter)
    for rule in _STRUCTURES:
        verdict = rule(given, true)
        if verdict is not None:
            return verdict
    return same_quantity(given, true)


@lru_cache(maxsize=8192)
def _squeezed(text: str) -> str:
    """Without spaces, and without \\text around what comes first."""
    return re.sub(r"\s+", "", _FIRST_TEXT.sub(r"\1", text))


def _same_words(given: str, true: str) -> bool | None:
    if (option := option_letter(true)) and (chosen := option_letter(given)):
        return chosen == option
    if len(many := letters(true)) > 1 and (listed := letters(given)):
        return set(listed) == set(many)
    if (said := words(given)) and (meant := words(true)):
        if said.text == meant.text:
            return True
        if said.marked or meant.marked:
            return False
    return None


def _same_primes(given: str, true: str) -> bool | None:
    """Primes are part of a name (x' is not x) and tell feet from inches; a label may have its own."""
    if "'" not in given + true or ("=" in given) != ("=" in true):
        return None
    first, second = (set(_PRIMED.findall(_IN_TEXT.sub(" ", text))) for text in (given, true))
    marks = [_MARKED.fullmatch(text) for text in (given, true)]
    return False if first != second or (marks[0] and marks[1] and marks[0][1] != marks[1][1]) else None


def _same_congruence(given: str, true: str) -> bool | None:
    return same_classes(given, true) if is_congruence(given) or is_congruence(true) else None


def _same_set(given: str, true: str) -> bool | None:
    if not (may_be_set(given) or may_be_set(true)):
        return None
    first, second = solutions(given), solutions(true)
    if first is None or second is None:
        return _same_builder(given, true)
    if first.variable and second.variable and first.variable != second.variable:
        return False
    mine, theirs = pieces(first.values), pieces(second.values)
    if mine is None or theirs is None:
        return bool(first.values == second.values)
    return len(mine) == len(theirs) and all(
        (a[1], a[3]) == (b[1], b[3]) and same_expression(a[0], b[0]) and same_expression(a[2], b[2])
        for a, b in zip(mine, theirs, strict=True)
    )


def _same_builder(given: str, true: str) -> bool | None:
    """Sets in braces whose conditions are no sets of real numbers: what is collected and the condition are equal."""
    first, second = bracketed(given), bracketed(true)
    if first is None or second is None or first.opening != "{" or second.opening != "{":
        return None
    mine, theirs = split(first.inner, BUILDER)[0], split(second.inner, BUILDER)[0]
    return all(map(_equal, mine, theirs)) if len(mine) == len(theirs) == 2 else None


def _same_counts(given: str, true: str) -> bool | None:
    """Numbers of several things, 3 red and 2 blue: each has its own where both answers name the same things."""
    first, second = _counts(given), _counts(true)
    if len(second) < 2 or first.keys() != second.keys():
        return None
    return all(_equal(part, second[noun]) for noun, part in first.items())


def _counts(text: str) -> dict[str, str]:
    """Each element of a list by what it counts; empty where one counts nothing or two count the same."""
    parts = elements(text)
    counted = {noun: part for part in parts if (noun := quantity_of(part).noun)}
    return counted if len(counted) == len(parts) else {}


def _same_list(given: str, true: str) -> bool | None:
    """Lists in any order. In braces, what stands there twice counts once."""
    first, second = _listed(given), _listed(true)
    if (first.count, second.count) == (1, 1) and not (first.braces and second.braces):
        changed = first.braces or second.braces or (first.parts, second.parts) != ([given], [true])
        return _equal(first.parts[0], second.parts[0]) if changed else None
    if max(first.count, second.count) > _MAX_ELEMENTS:
        return False
    if 1 in (first.count, second.count) and is_sum(true if first.count == 1 else given):
        return None
    for one, other in ((first, second), (second, first)):
        if one.count == 1 and not one.braces and (inner := bracketed(one.parts[0])) is not None:
            ordered = elements(inner.inner)
            if len(ordered) == other.count and not other.braces:
                return all(
                    map(_equal, first.parts if one is second else ordered, ordered if one is second else second.parts)
                )
            return False
    parts = [item.distinct() if first.braces or second.braces else item.parts for item in (first, second)]
    return len(parts[0]) == len(parts[1]) and _matched(parts[0], parts[1], _equal)


def _same_values(given: str, true: str) -> bool | None:
    """Values with their names, in any order; those of x, y and z are the coordinates of a point."""
    first, second = _named_values(given), _named_values(true)
    if first is not None and second is not None:
        return first.keys() == second.keys() and all(_equal(value, second[name]) for name, value in first.items())
    if first is not None and first.keys() <= {"x", "y", "z"} and (point := bracketed(true)):
        mine, theirs = [first[name] for name in sorted(first)], elements(point.inner)
    elif second is not None and second.keys() <= {"x", "y", "z"} and (point := bracketed(given)):
        mine, theirs = elements(point.inner), [second[name] for name in sorted(second)]
    else:
        return None
    return point.opening == "(" and len(mine) == len(theirs) and all(map(_equal, mine, theirs))


def _named_values(text: str) -> dict[str, str] | None:
    """x = 1, y = 2 or (x, y) = (1, 2)."""
    sides, _ = split(text, _EQUALS)
    if len(sides) == 2 and (left := bracketed(sides[0])) and (right := bracketed(sides[1])):
        names, values = elements(left.inner), elements(right.inner)
    else:
        pairs = [split(part, _EQUALS)[0] for part in elements(text)]
        if any(len(pair) != 2 for pair in pairs):
            return None
        names, values = [name for name, _ in pairs], [value for _, value in pairs]
    known = all(_NAME.fullmatch(name) for name in names) and len(set(names)) == len(names) == len(values) > 1
    return dict(zip(names, values, strict=True)) if known else None


def _matched(given: list[Any], true: list[Any], are_equal: Callable[[Any, Any], bool]) -> bool:
    """Whether each part of one list has its own equal in the other."""
    left = list(given)
    for part in true:
        index = next((index for index, other in enumerate(left) if are_equal(other, part)), None)
        if index is None:
            return False
        del left[index]
    return True


class _Listed:
    def __init__(self, parts: list[str], braces: bool) -> None:
        self.parts, self.braces, self.count = parts, braces, len(parts)

    def distinct(self) -> list[str]:
        kept: list[str] = []
        for part in self.parts:
            if not any(_equal(part, other) for other in kept):
                kept.append(part)
        return kept


@lru_cache(maxsize=8192)
def _listed(text: str) -> _Listed:
    """An answer as a list: what stands between commas, each sign of a \\pm apart, without a label before all of it
    (n = 2, 3, 4)."""
    brackets = bracketed(text)
    braces = brackets is not None and brackets.opening == "{"
    parts = elements(brackets.inner) if brackets is not None and braces else elements(text) or [text]
    if len(parts) > 1 and "=" in parts[0] and not any("=" in part for part in parts[1:]) and not may_be_set(text):
        sides, _ = split(parts[0], _EQUALS)
        if len(sides) == 2 and _is_label(sides[0]):
            parts[0] = sides[1]
    made = _Listed([signed for part in parts for signed in _signs(part)], braces)
    either = len(parts) > 1 and not _AND.search(text)
    return _Listed(made.distinct(), braces) if either else made


def _signs(text: str) -> list[str]:
    """1 \\pm x as 1 + x and 1 - x; \\mp has the other sign than the \\pm beside it."""
    found = _PLUS_MINUS.findall(text)
    if not found or len(found) > _MAX_SIGNS:
        return [text]
    if "mp" in found:
        both = [{"pm": "+", "mp": "-"}, {"pm": "-", "mp": "+"}]
        return [_PLUS_MINUS.sub(lambda match, signs=signs: signs[match[1]], text) for signs in both]  # type: ignore[misc]
    made = [text]
    for _ in found:
        made = [_PLUS_MINUS.sub(sign, one, count=1) for one in made for sign in "+-"]
    return [re.sub(r"^\s*\+\s*|(?<==)\s*\+\s*", "", one) for one in made]


def _same_equation(given: str, true: str) -> bool | None:
    """Labels (x = 5, P(A) = 1/2) may be left out, by the true answer only if they are ones; of a chain of values the
    last counts, of an approximation what is approximated."""
    first, second = _exact_part(given), _exact_part(true)
    if (first, second) != (given, true):
        return _equal(first, second)
    mine, theirs = split(given, _EQUALS)[0], split(true, _EQUALS)[0]
    if len(mine) == len(theirs) == 1:
        both = INEQUALITY.search(given) and INEQUALITY.search(true)
        return _same_relation(given, true) or None if both else None
    if "" in mine or "" in theirs:
        return False
    if len(theirs) == 1:
        return _equal(mine[0] if _is_label(mine[-1]) and not _is_label(mine[0]) else mine[-1], true)
    if len(mine) == 1:
        return _equal(given, theirs[-1]) if _is_label(theirs[0]) or _is_constant(theirs) else False
    if _is_constant(mine) or _is_constant(theirs):
        return _equal(mine[-1], theirs[-1])
    if _squeezed(mine[0]) == _squeezed(theirs[0]) and _is_label(mine[0]):
        return _equal(mine[-1], theirs[-1])
    return _same_relation(given, true)


def _exact_part(text: str) -> str:
    text = split(text, _FOLLOWS)[0][-1]
    sides, _ = split(text, _APPROXIMATELY)
    if len(sides) == 1 or not all(sides):
        return text
    return sides[-1] if _is_label(sides[0]) else sides[0]


def _is_label(text: str) -> bool:
    """Whether the left side of an equation only names what the right side says: x, f(3), P(A), \\angle ABC, words."""
    made = parsed(text)
    if not isinstance(made, Expr):
        return re.search("[^\\W\\d_]", text) is not None and (made is None or not re.search(r"\d", text))
    if isinstance(made, AppliedUndef | sympy.Derivative):
        return True
    return bool(made.free_symbols) and (is_expr_of_only_symbols(made) or not made.atoms(Number) - {sympy.Integer(-1)})


def _is_constant(sides: list[str]) -> bool:
    made = [parsed(quantity_of(side).head) for side in sides]
    return all(isinstance(side, Expr) and not side.free_symbols and not side.atoms(AppliedUndef) for side in made)


def _same_relation(given: str, true: str) -> bool:
    """Equations or inequalities with the same solutions: their differences of sides are proportional, without their
    denominators at least."""
    first, second = _relations(parsed(given)), _relations(parsed(true))
    return bool(first) and len(first) == len(second) and _matched(first, second, _proportional)


def _relations(made: object) -> list[tuple[str, Expr]]:
    """Each relation as what is = 0, > 0, >= 0 or != 0."""
    if isinstance(made, And):
        return [relation for part in made.args for relation in _relations(part)]
    if not isinstance(made, Relational) or not isinstance(made.lhs, Expr) or not isinstance(made.rhs, Expr):
        return []
    if isinstance(made, sympy.Lt | sympy.Le):
        return [("<" if isinstance(made, sympy.Lt) else "<=", made.rhs - made.lhs)]
    kind = {sympy.Gt: "<", sympy.Ge: "<=", sympy.Eq: "=", sympy.Ne: "!="}.get(type(made), "?")
    return [(kind, made.lhs - made.rhs)]


def _proportional(first: tuple[str, Expr], second: tuple[str, Expr]) -> bool:
    (kind, left), (other, right) = first, second
    if kind != other or left.free_symbols != right.free_symbols or not left.free_symbols:
        return False
    point = {
        symbol: sympy.Rational(17 + 6 * n, 7 + 2 * n) for n, symbol in enumerate(sorted(left.free_symbols, key=str))
    }
    pairs = [(left, right)]
    if kind == "=":
        pairs.append((sympy.fraction(sympy.together(left))[0], sympy.fraction(sympy.together(right))[0]))
    for a, b in pairs:
        ratio = a.subs(point) / b.subs(point)
        if (
            ratio.is_finite
            and not ratio.is_zero
            and (kind in ("=", "!=") or ratio.is_positive)
            and same_value(a, ratio * b)
        ):
            return True
    return False


def _same_brackets(given: str, true: str) -> bool | None:
    first, second = bracketed(_POINT.sub("", given)), bracketed(_POINT.sub("", true))
    if first is None or second is None:
        return None
    mine, theirs = elements(first.inner), elements(second.inner)
    if len(mine) != len(theirs) or len(mine) < 2:
        return None
    return (first.opening, first.closing) == (second.opening, second.closing) and all(map(_equal, mine, theirs))


def _same_ratio(given: str, true: str) -> bool | None:
    """Times of day by hour and minute, ratios by proportion."""
    mine, theirs = (split(quantity_of(text).head, _COLON)[0] for text in (given, true))
    if len(mine) == 1 or len(theirs) == 1:
        return None
    units = [
        {name for name, _ in unit.dimensions} if (unit := quantity_of(text).unit) else set() for text in (given, true)
    ]
    if (units[0] | units[1]) & {"am", "pm"}:
        return (
            not (units[0] and units[1] and units[0] != units[1])
            and len(mine) == len(theirs)
            and all(map(_equal, mine, theirs))
        )
    if len(mine) != len(theirs):
        return False
    if all(_CLOCK.fullmatch(side[-1]) for side in (mine, theirs)) and "00" in (mine[-1], theirs[-1]):
        return all(map(_equal, mine, theirs))
    return all(
        _equal(rf"({a}) \cdot ({theirs[0]})", rf"({b}) \cdot ({mine[0]})")
        for a, b in zip(mine[1:], theirs[1:], strict=True)
    )


def _same_base(given: str, true: str) -> bool | None:
    first, second = _BASE.fullmatch(given), _BASE.fullmatch(true)
    return False if first and second and first[1] != second[1] else None


_RULES: tuple[Callable[[str, str], bool | None], ...] = (_same_words, _same_congruence)
_STRUCTURES: tuple[Callable[[str, str], bool | None], ...] = (
    _same_primes,
    _same_set,
    _same_values,
    _same_counts,
    _same_list,
    _same_equation,
    _same_brackets,
    _same_ratio,
    _same_base,
)
