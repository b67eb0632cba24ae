"""Whether two quantities are equal: their numbers in their units.

A unit, a currency, a direction or a degree sign on one side only is forgiven. Units of one kind are converted (500 cm
is 5 m), of different kinds never equal. A magnitude (million) counts on either side. 50% is 1/2 and 50.
"""

import re
from fractions import Fraction

import sympy
from sympy import Expr
from sympy.functions.elementary.trigonometric import InverseTrigonometricFunction

from reward.math.expression import same_expression
from reward.math.parse import parsed
from reward.math.quantity import Quantity, alternatives, quantity_of

_PERCENT = Fraction(1, 100)
_ANGLE, _RADIAN = (("°", 1),), (("rad", 1),)
_TEMPERATURES = ((("°C", 1),), (("°F", 1),))


def same_quantity(given: str, true: str) -> bool:
    """Whether two tidied answers that are neither lists nor equations are equal."""
    mine, theirs = quantity_of(given), quantity_of(true)
    if _same(mine, theirs):
        return True
    if not re.search("[a-zA-Z]", theirs.head) and any(_same(other, theirs) for other in alternatives(given)):
        return True
    explicit = mine.unit is not None and not re.search("[a-zA-Z]", mine.head)
    return explicit and any(_same(mine, other) for other in alternatives(true) if other.unit is not None)


def _same(mine: Quantity, theirs: Quantity) -> bool:
    if _is_angle(mine) != _is_angle(theirs) and _same_angle(mine, theirs):
        return True
    if not _units_agree(mine, theirs):
        return False
    ratio = mine.factor / theirs.factor
    if mine.unit and theirs.unit and mine.unit.dimensions == theirs.unit.dimensions:
        ratio *= mine.unit.size / theirs.unit.size
    if _is_scaled(mine.head, ratio, theirs.head):
        return True
    if mine.percent == theirs.percent:
        return False
    return _is_scaled(mine.head, ratio * (_PERCENT if mine.percent else 1 / _PERCENT), theirs.head)


def _units_agree(mine: Quantity, theirs: Quantity) -> bool:
    if mine.direction != theirs.direction and mine.direction and theirs.direction:
        return False
    if mine.unit is None or theirs.unit is None:
        return not (mine.percent and theirs.unit or theirs.percent and mine.unit)
    kinds = mine.unit.dimensions, theirs.unit.dimensions
    return kinds[0] == kinds[1] or (_ANGLE in kinds and (kinds[0] in _TEMPERATURES or kinds[1] in _TEMPERATURES))


def _is_scaled(given: str, ratio: Fraction, true: str) -> bool:
    """Whether `given` times `ratio` is `true`."""
    if ratio == 1 and re.sub(r"\s+", "", given) == re.sub(r"\s+", "", true):
        return True
    made = parsed(given)
    if ratio != 1:
        made = _scaled(made, ratio)
    return same_expression(made, parsed(true))


def _scaled(made: object, ratio: Fraction) -> Expr | None:
    if not isinstance(made, Expr):
        return None
    return sympy.Mul(sympy.Rational(ratio.numerator, ratio.denominator), made, evaluate=False)


def _is_angle(quantity: Quantity) -> bool:
    return quantity.unit is not None and quantity.unit.dimensions == _ANGLE


def _same_angle(mine: Quantity, theirs: Quantity) -> bool:
    """Whether degrees on one side are the radians of the other, which says so or is a multiple of pi or an inverse
    trigonometric function."""
    degrees, other = (mine, theirs) if _is_angle(mine) else (theirs, mine)
    made, angle = parsed(other.head), parsed(degrees.head)
    if not isinstance(made, Expr) or not isinstance(angle, Expr) or other.percent:
        return False
    said = other.unit is not None and other.unit.dimensions == _RADIAN
    if not said and (other.unit is not None or not (made.has(sympy.pi) or made.atoms(InverseTrigonometricFunction))):
        return False
    return same_expression(sympy.Mul(angle, sympy.pi, sympy.Rational(1, 180), evaluate=False), made)
