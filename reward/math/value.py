"""Values of parsed expressions, and whether two of them are equal.

Rational numbers are compared exactly. Everything else is evaluated with mpmath: constants at two precisions (the
difference of equal constants shrinks with the precision), expressions with variables at several points.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import mpmath
import sympy
from mpmath import mp, mpc, mpf
from sympy import Basic, Expr, Float, Integer, Rational, S, Symbol, UnevaluatedExpr
from sympy.core.function import AppliedUndef

from reward.math.numbers import decimals_agree

MAX_BITS = 200_000
MAX_LOG2 = 10**9
MAX_FACTORIAL = 5_000
_PRECISIONS = (50, 120)
_POINTS = ((1.3719, 2.6143, 0.5171, 3.2907, 1.8113, 0.8377), (0.2917, 1.1379, 2.3551, 0.7333, 4.1927, 1.6181))
_OTHER_POINTS = (
    (-1.2713, 0.6619, -2.4171, 1.9301, -0.3517, 2.7121),
    (-0.4337, -1.7719, 0.9173, -2.2391, 1.4143, -3.1133),
)


class TooLargeError(ArithmeticError):
    """A number that no computer holds."""


class NoValueError(ArithmeticError):
    """An expression that has no value here: undefined, infinite, or of a kind that is not read."""


def exact(expr: Basic) -> Fraction | None:
    """The rational value of an expression without variables, None where it has none or it is too long to hold.
    Decimals count as what they say."""
    if isinstance(expr, Rational):
        return Fraction(int(expr.p), int(expr.q))
    if isinstance(expr, Float):
        return Fraction(str(expr)) if expr.is_finite else None
    if isinstance(expr, UnevaluatedExpr):
        return exact(expr.args[0])
    if isinstance(expr, sympy.factorial):
        number = exact(expr.args[0])
        if number is None or number.denominator != 1 or not 0 <= number <= MAX_FACTORIAL:
            return None
        return Fraction(int(sympy.factorial(int(number))))
    if not isinstance(expr, sympy.Add | sympy.Mul | sympy.Pow):
        return None
    parts = [exact(part) for part in expr.args]
    if any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None]
    if isinstance(expr, sympy.Pow):
        return _exact_power(*known)
    total = Fraction(isinstance(expr, sympy.Mul))
    for part in known:
        total = total * part if isinstance(expr, sympy.Mul) else total + part
    return total


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1 or (base == 0 and exponent < 0):
        return None
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    return base**exponent.numerator if size * abs(exponent) <= MAX_BITS else None


def same_value(a: Expr, b: Expr) -> bool | None:
    """Whether two expressions are equal; None where their values do not settle it (they agree for positive variables
    only, or have no values). Roots of odd degree of negative numbers are real, or if that fails complex."""
    rounded = a.has(Float) or b.has(Float)
    if not (a.free_symbols or b.free_symbols or a.atoms(AppliedUndef) or b.atoms(AppliedUndef)):
        first, second = exact(a), exact(b)
        if first is not None and second is not None:
            return decimals_agree(first, second) if rounded else first == second
    names = sorted(_names(a) | _names(b))
    if rounded and names and _terms_differ(a, b):
        return False
    verdicts = []
    for real_roots in (True, False):
        reader = _Reader(real_roots)
        verdicts.append(_same_somewhere(reader, a, b, names, rounded))
        if verdicts[-1] or not reader.chose_a_root:
            return verdicts[-1]
    return verdicts[0]


def _terms_differ(a: Expr, b: Expr) -> bool:
    """Whether two sums of the same terms have numbers before these, or a constant, that count as different: x + 1e-7 is
    not x. Other sums are left to their values."""
    first, second = _terms(a), _terms(b)
    if (first.keys() ^ second.keys()) - {S.One}:
        return False
    terms = first.keys() | second.keys()
    return not all(decimals_agree(first.get(term, Fraction(0)), second.get(term, Fraction(0))) for term in terms)


def _terms(expr: Expr) -> dict[Expr, Fraction]:
    """The terms of a sum with the numbers before them; S.One holds the constant."""
    terms: dict[Expr, Fraction] = {}
    for part in sympy.Add.make_args(expr):
        number, term = part.as_coeff_Mul()
        terms[term] = terms.get(term, Fraction(0)) + (exact(number) or Fraction(0))
    return terms


def _names(expr: Basic) -> set[str]:
    return {symbol.name for symbol in expr.free_symbols if symbol.name != "i"} | {
        str(f) for f in expr.atoms(AppliedUndef)
    }


def _same_somewhere(reader: "_Reader", a: Expr, b: Expr, names: list[str], rounded: bool) -> bool | None:
    if len(names) > len(_POINTS[0]):
        return None
    agreed = [_same_at(reader, a, b, dict(zip(names, point, strict=False)), rounded) for point in _POINTS]
    if False in agreed:
        return False
    if None in agreed or not names:
        return agreed[0]
    others = [_same_at(reader, a, b, dict(zip(names, point, strict=False)), rounded) for point in _OTHER_POINTS]
    return True if False not in others else None


def _same_at(reader: "_Reader", a: Expr, b: Expr, point: Mapping[str, float], rounded: bool) -> bool | None:
    differences = []
    for digits in _PRECISIONS:
        with mp.workdps(digits):
            try:
                first, second = reader.value(a, point), reader.value(b, point)
            except TooLargeError:
                return a == b
            except (ArithmeticError, ValueError, TypeError, AttributeError, NotImplementedError):
                return None
            difference, scale = abs(first - second), max(abs(first), abs(second))
            if not mpmath.isfinite(difference):
                return None
            if difference == 0:
                return True
            if rounded:
                return _rounded_agree(first, second, bool(point))
            differences.append(difference)
            if difference > scale * mpf(10) ** (10 - digits) and len(differences) == 1 and scale > mpf(10) ** (-20):
                return False
    return bool(differences[1] < differences[0] * mpf(10) ** (_PRECISIONS[0] - _PRECISIONS[1] + 20))


def _rounded_agree(first: Any, second: Any, with_variables: bool) -> bool:
    difference, scale = abs(first - second), max(abs(first), abs(second))
    if with_variables:
        return bool(difference <= scale * mpf(2) / 10**6)
    return bool(difference <= min(mpf(5) / 10**7, scale / 10**5))


class _Reader:
    """Evaluates expressions. real_roots: of negative numbers, roots of odd degree are real."""

    def __init__(self, real_roots: bool) -> None:
        self.real_roots = real_roots
        self.chose_a_root = False

    def value(self, expr: Basic, point: Mapping[str, float]) -> Any:
        if isinstance(expr, Integer):
            return mpf(int(expr))
        if isinstance(expr, Rational):
            return mpf(int(expr.p)) / int(expr.q)
        if isinstance(expr, Float):
            return mpf(str(expr))
        if isinstance(expr, Symbol):
            return mpc(0, 1) if expr.name == "i" else mpf(point[expr.name])
        if isinstance(expr, AppliedUndef):
            return self._named(expr, point)
        if isinstance(expr, sympy.Pow):
            return self._power(self.value(expr.args[0], point), self.value(expr.args[1], point), expr.args[1])
        if isinstance(expr, sympy.Add):
            return mpmath.fsum(self.value(part, point) for part in expr.args)
        if isinstance(expr, sympy.Mul):
            return mpmath.fprod([self.value(part, point) for part in expr.args])
        constant = _CONSTANTS.get(expr)
        if constant is not None:
            return constant()
        function = _FUNCTIONS.get(expr.func)
        if function is not None:
            return function(*(self.value(part, point) for part in expr.args))
        return self._worked_out(expr, point)

    def _named(self, expr: Basic, point: Mapping[str, float]) -> Any:
        return mpf(point[str(expr)])

    def _worked_out(self, expr: Basic, point: Mapping[str, float]) -> Any:
        """Sums, products, integrals, limits and derivatives, worked out by sympy; its other functions."""
        done = expr.doit()
        if done != expr and isinstance(done, Expr):
            return self.value(done, point)
        number = expr.evalf(mp.dps, subs={symbol: point[symbol.name] for symbol in expr.free_symbols})
        if not number.is_number:
            raise NoValueError(f"no value of {type(expr).__name__}")
        return mpmath.mpmathify(number)

    def _power(self, base: Any, exponent: Any, written: Basic) -> Any:
        if base == 0:
            if mpmath.re(exponent) < 0:
                raise NoValueError("a division by 0")
            return mpf(1) if exponent == 0 else mpf(0)
        if abs(exponent) * abs(mpmath.log(abs(base), 2)) > MAX_LOG2:
            raise TooLargeError
        if isinstance(base, mpc) and base.imag == 0:
            base = base.real
        ratio = exact(written)
        if isinstance(base, mpf) and base < 0 and ratio is not None and ratio.denominator % 2 and ratio.denominator > 1:
            self.chose_a_root = True
            if self.real_roots:
                return (-1) ** ratio.numerator * mpmath.power(-base, exponent)
        return mpmath.power(base, exponent)


def _factorial(number: Any) -> Any:
    if abs(number) > 10**7:
        raise TooLargeError
    return mpmath.factorial(number)


def _exponential(number: Any) -> Any:
    if abs(number) > MAX_LOG2:
        raise TooLargeError
    return mpmath.exp(number)


def _logarithm(number: Any, base: Any = None) -> Any:
    if number == 0:
        raise NoValueError("the logarithm of 0")
    return mpmath.log(number) if base is None else mpmath.log(number) / mpmath.log(base)


def _floor(number: Any) -> Any:
    """The floor, of a number a hair below a whole one too."""
    nearest = mpmath.nint(number)
    return nearest if abs(number - nearest) < mpf(10) ** (5 - mp.dps) else mpmath.floor(number)


_SAME_NAME = ("sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "acot", "asec", "acsc",
              "sinh", "cosh", "tanh", "asinh", "acosh", "atanh")  # fmt: skip
_CONSTANTS: dict[Basic, Callable[[], Any]] = {
    sympy.pi: lambda: +mp.pi,
    sympy.E: lambda: +mp.e,
    sympy.I: lambda: mpc(0, 1),
    sympy.EulerGamma: lambda: +mp.euler,
}
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    UnevaluatedExpr: lambda number: number,
    sympy.exp: _exponential,
    sympy.log: _logarithm,
    sympy.factorial: _factorial,
    sympy.binomial: mpmath.binomial,
    sympy.gamma: lambda number: _factorial(number - 1),
    sympy.Abs: abs,
    sympy.floor: _floor,
    sympy.ceiling: lambda number: -_floor(-number),
    sympy.conjugate: mpmath.conj,
    sympy.re: mpmath.re,
    sympy.im: mpmath.im,
    sympy.Max: max,
    sympy.Min: min,
    sympy.Mod: mpmath.fmod,
    **{
        getattr(sympy, name): getattr(mpmath, name)
        for name in (
            [
                "sin",
                "cos",
                "tan",
                "cot",
                "sec",
                "csc",
                "asin",
                "acos",
                "atan",
                "acot",
                "asec",
                "acsc",
                "sinh",
                "cosh",
                "tanh",
                "asinh",
                "acosh",
                "atanh",
            ]
        )
    },
}
