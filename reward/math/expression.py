"""Whether two parsed objects are equal: expressions by their values, matrices by their entries, all else by
math-verify."""

from typing import TypeAlias

import sympy
from math_verify import verify
from sympy import Basic, E, Expr, I, MatrixBase, Mul, Symbol

from reward.math.value import same_value

Parsed: TypeAlias = "Basic | MatrixBase | None"


def same_expression(given: Parsed, true: Parsed) -> bool:
    """Whether what was parsed is equal. False where either could not be parsed."""
    if given is None or true is None:
        return False
    if isinstance(given, MatrixBase) and isinstance(true, MatrixBase):
        return given.shape == true.shape and all(map(same_expression, given.flat(), true.flat()))
    if not (isinstance(given, Expr) and isinstance(true, Expr)):
        return verified(given, true)
    given, true = _with_j(given, true), _with_j(true, given)
    if _is_name(given) and _is_word(true) or _is_name(true) and _is_word(given):
        return verified(given, true)
    if given in (sympy.oo, -sympy.oo) or true in (sympy.oo, -sympy.oo):
        return given == true
    verdict = same_value(given, true)
    return verified(given, true) if verdict is None else verdict


def verified(given: Parsed, true: Parsed) -> bool:
    """math-verify's verdict; intervals and inequalities may stand for each other."""
    if given is None or true is None:
        return False
    return verify([true], [given], allow_set_relation_comp=True, timeout_seconds=None)


def _with_j(expr: Expr, other: Expr) -> Expr:
    """An engineer's j as the imaginary unit, where the other answer has one and no j."""
    names = {symbol.name: symbol for symbol in expr.free_symbols if isinstance(symbol, Symbol)}
    if "j" not in names or expr.has(I) or not other.has(I) or any(str(symbol) == "j" for symbol in other.free_symbols):
        return expr
    return expr.xreplace({names["j"]: I})


def _is_name(item: Expr) -> bool:
    return isinstance(item, Symbol) and len(item.name) > 1


def _is_word(item: Expr) -> bool:
    """A product of letters, which may be a word without \\text."""
    return all(isinstance(factor, Symbol) or factor == E for factor in Mul.make_args(item))
