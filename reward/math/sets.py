"""Sets of numbers: inequalities, intervals, unions, set-builder notation, and what is joined by and, or, commas."""

import re
from functools import lru_cache
from typing import Any, NamedTuple

import sympy
from sympy import FiniteSet, Interval, Range, S, Set, Symbol, Union, oo

from reward.math.parse import parsed
from reward.math.structure import RELATION, bracketed, elements, split

MAX_ELEMENTS = 200

_JOINED = re.compile(r"\\lor(?![a-zA-Z])|(?<![a-zA-Z\\{])or(?![a-zA-Z])|或者|或")
_BOTH = re.compile(r"\\land(?![a-zA-Z])|(?<![a-zA-Z\\{])and(?![a-zA-Z])|并且|以及|[且和与及]|,|;")
_UNITED = re.compile(r"\\cup(?![a-zA-Z])")
_SHARED = re.compile(r"\\cap(?![a-zA-Z])")
_WITHOUT = re.compile(r"\\setminus(?![a-zA-Z])|(?<=[)\]}])\s*-\s*(?=\\\{)")
_IN = re.compile(r"\s*([a-zA-Z]|\\[a-zA-Z]+)\s*\\in(?![a-zA-Z])\s*")
BUILDER = re.compile(r"\\mid(?![a-zA-Z])|\||:(?!=)")
INEQUALITY = re.compile(r"\\(?:le|ge|neq)(?![a-zA-Z])|[<>]")
_MARKS = re.compile(r"\\(?:le|ge|neq|cup|cap|setminus|in|mathbb|emptyset|mid|infty)(?![a-zA-Z])|[<>|]|\[")
_KNOWN = {
    r"\mathbb{R}": S.Reals,
    r"\mathbb{Z}": S.Integers,
    r"\mathbb{N}": S.Naturals,
    r"\mathbb{Q}": S.Rationals,
    r"\mathbb{R}^+": Interval.open(0, oo),
    r"\mathbb{R}^{+}": Interval.open(0, oo),
    r"\mathbb{Z}^+": S.Naturals,
    r"\mathbb{Z}^{+}": S.Naturals,
    r"\emptyset": S.EmptySet,
    r"\{\}": S.EmptySet,
    r"\{ \}": S.EmptySet,
}
_ALL_REAL = re.compile(
    r"(?:the set of )?all (?:the )?(?:real )?(?:numbers|reals|values)(?: of x)?(?P<rest>.*)", re.IGNORECASE
)
_EXCEPT = re.compile(r"\s*(?:except|excluding|other than|but)(?: for)?\s*")
_RELATIONS = {r"\le": sympy.Le, r"\ge": sympy.Ge, "<": sympy.Lt, ">": sympy.Gt, r"\neq": sympy.Ne, "=": sympy.Eq}
_MIRRORED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\neq": r"\neq", "=": "="}


class Solutions(NamedTuple):
    """A set, and the variable whose values they are; "" where it is not named."""

    values: Set
    variable: str


def may_be_set(text: str) -> bool:
    """Whether a tidied answer has the marks of a set: an inequality, a union, a set-builder, an interval in square
    brackets."""
    return _MARKS.search(text) is not None or "all real" in text


@lru_cache(maxsize=4096)
def solutions(text: str) -> Solutions | None:
    """The set of real numbers that a tidied answer means, None where it means none that can be read."""
    try:
        return _read(text.strip())
    except Exception:  # sympy refuses some inequalities and unions with exceptions of any class
        return None


def _read(text: str) -> Solutions | None:
    if text in _KNOWN:
        return Solutions(_KNOWN[text], "")
    if match := _ALL_REAL.fullmatch(re.sub(r"\\text\{([^{}]*)\}", r"\1", text)):
        return _all_but(match["rest"])
    parts, _ = split(text, _JOINED)
    if len(parts) > 1:
        return _united(parts)
    parts, found = split(text, _BOTH)
    parts = [part for part in parts if part]
    if len(parts) > 1:
        return _listed(parts, commas=all(mark in ",;" for mark in found))
    if match := _IN.match(text):
        inner = _read(text[match.end() :])
        if inner is not None:
            return Solutions(inner.values, _name(match[1]))
    for pattern, combine in ((_UNITED, Union), (_WITHOUT, sympy.Complement), (_SHARED, sympy.Intersection)):
        parts, _ = split(text, pattern)
        if len(parts) > 1:
            read = [_read(part) for part in parts]
            if any(item is None for item in read):
                return None
            made = read[0].values  # type: ignore[union-attr]
            for item in read[1:]:
                made = combine(made, item.values)  # type: ignore[union-attr]
            return Solutions(made, _common(read))
    return _atom(text)


def _name(variable: str) -> str:
    return variable.strip().lstrip("\\")


def _common(read: list[Solutions | None]) -> str:
    """The variable of all parts; KeyError where they have several."""
    names = {item.variable for item in read if item is not None and item.variable}
    if len(names) > 1:
        raise KeyError("several variables")
    return names.pop() if names else ""


def _all_but(rest: str) -> Solutions | None:
    if not rest.strip(" ."):
        return Solutions(S.Reals, "")
    match = _EXCEPT.match(rest)
    if match is None:
        return None
    points = [_number(part.rpartition("=")[2]) for part in elements(rest[match.end() :])]
    return None if None in points else Solutions(S.Reals - FiniteSet(*points), "")


def _united(parts: list[str]) -> Solutions | None:
    read = [_read(part) for part in parts]
    return None if None in read else Solutions(Union(*(item.values for item in read if item)), _common(read))


def _listed(parts: list[str], *, commas: bool) -> Solutions | None:
    """What is joined by `and` holds together. Commas leave it open: together where the parts are excluded points or
    overlap, else any of them."""
    read = [_read(part) for part in parts]
    if None in read:
        return None
    sets = [item.values for item in read if item]
    shared = sympy.Intersection(*sets)
    either = any(r"\neq" in part for part in parts) or not shared.is_empty
    inequalities = all(INEQUALITY.search(part) or _IN.match(part) for part in parts)
    together = shared if inequalities and (either or not commas) else Union(*sets)
    return Solutions(together, _common(read))


def _atom(text: str) -> Solutions | None:
    brackets = bracketed(text)
    if brackets is not None and brackets.opening == "{":
        return _built(brackets.inner)
    relation = _inequality(text)
    if relation is not None or brackets is None:
        return relation
    inner, _ = split(brackets.inner, re.compile(r",|;"))
    if len(inner) == 1 and brackets.opening == "(" and brackets.closing == ")":
        return _read(brackets.inner)
    ends = [_number(part) for part in inner]
    if len(ends) != 2 or None in ends:
        return None
    return Solutions(Interval(*ends, brackets.opening == "(", brackets.closing == ")"), "")


def _built(inner: str) -> Solutions | None:
    """What stands in braces: numbers, or a variable and its condition."""
    parts, _ = split(inner, BUILDER)
    if len(parts) == 1:
        points = [_number(part) for part in elements(inner)]
        return None if None in points else Solutions(FiniteSet(*points), "")
    head, condition = parts[0], inner[inner.index(parts[0]) + len(parts[0]) :]
    condition = BUILDER.sub("", condition, count=1).strip()
    domain: Set = S.Reals
    if match := _IN.match(head):
        known = _KNOWN.get(head[match.end() :].strip())
        if known is None:
            return None
        domain, head = known, match[1]
    read = _read(condition)
    if read is None or (read.variable and read.variable != _name(head)):
        return None
    return Solutions(domain if read.values == S.Reals else sympy.Intersection(domain, read.values), "")


def _number(text: str) -> Any:
    made = parsed(text.replace("+\\infty", "\\infty").strip())
    return made if isinstance(made, sympy.Expr) else None


def _inequality(text: str) -> Solutions | None:
    parts, relations = split(text, RELATION)
    relations = [relation.strip() for relation in relations]
    if not relations or any(relation not in _RELATIONS for relation in relations):
        return None
    terms = [_number(part) for part in parts]
    if any(term is None for term in terms):
        return None
    variables = {symbol for term in terms for symbol in term.free_symbols}
    if len(variables) != 1:
        return None
    variable = variables.pop()
    found: Set = S.Reals
    for left, relation, right in zip(terms, relations, terms[1:], strict=False):
        found = sympy.Intersection(found, _solved(left, relation, right, variable))
    return Solutions(found, variable.name)


def _solved(left: Any, relation: str, right: Any, variable: Symbol) -> Set:
    """Where `left relation right` holds. A variable alone on one side needs no solving."""
    if right == variable and not left.free_symbols:
        left, relation, right = right, _MIRRORED[relation], left
    if left == variable and not right.free_symbols:
        return {
            "<": lambda: Interval.open(-oo, right),
            ">": lambda: Interval.open(right, oo),
            r"\le": lambda: Interval(-oo, right),
            r"\ge": lambda: Interval(right, oo),
            r"\neq": lambda: S.Reals - FiniteSet(right),
            "=": lambda: FiniteSet(right),
        }[relation]()
    real = Symbol(variable.name, real=True)
    return _RELATIONS[relation](left.subs(variable, real), right.subs(variable, real)).as_set()


def pieces(values: Set) -> list[tuple[Any, bool, Any, bool]] | None:
    """A set as disjoint pieces in order: start, open, end, open; None where it is none of those."""
    if values.is_empty:
        return []
    if isinstance(values, Range) or (isinstance(values, sympy.Intersection) and values.is_finite_set):
        if isinstance(values, Range) and (not values.is_finite_set or len(values) > MAX_ELEMENTS):
            return None
        values = FiniteSet(*values)
    if values == S.Reals:
        return [(-oo, True, oo, True)]
    made: list[tuple[Any, bool, Any, bool]] = []
    for part in values.args if isinstance(values, Union) else [values]:
        if isinstance(part, FiniteSet):
            made += [(point, False, point, False) for point in part.args]
        elif isinstance(part, Interval):
            made.append((part.start, bool(part.left_open), part.end, bool(part.right_open)))
        else:
            return None
    return sorted(made, key=lambda piece: (sympy.N(piece[0]), sympy.N(piece[2])))
