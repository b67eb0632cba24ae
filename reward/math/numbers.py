"""When two numbers count as equal. Standard library only: plain numbers are graded without a worker.

Exact numbers (whole, fractions) are compared exactly. A decimal is a rounded number: it agrees with another that is
equal to 6 decimal places and 5 significant digits, so that 0.333333 is 1/3 and 6.6e-34 is not 6.6e-27. A whole number
is never rounded: 1.0000001 is not 1.
"""

import re
from fractions import Fraction

PLACES = Fraction(5, 10**7)
DIGITS = Fraction(1, 10**5)
WHOLE = Fraction(1, 10**9)  # what arithmetic on floats leaves behind
_PLAIN = re.compile(r"(-)?(?:(\d+(?:\.\d+)?)|\\[dt]?frac\{(-?\d+)\}\{(\d+)\}|(\d+)/(\d+))", re.ASCII)
_MAX_CHARACTERS = 40


def decimals_agree(a: Fraction, b: Fraction) -> bool:
    """Whether two numbers of which one at least is a decimal count as equal."""
    scale = max(abs(a), abs(b))
    whole = a.denominator == 1 or b.denominator == 1
    return abs(a - b) <= (WHOLE * min(Fraction(1), scale) if whole else min(PLACES, DIGITS * scale))


def plain_number(text: str) -> Fraction | None:
    """The value of a number written plainly (-3, 0.25, 1/2, \\frac{1}{2}), None for anything else."""
    match = _PLAIN.fullmatch(text) if len(text) <= _MAX_CHARACTERS else None
    if match is None:
        return None
    sign, decimal, *parts = match.groups()
    if decimal is None and not int(parts[1] or parts[3]):
        return None
    value = Fraction(decimal) if decimal is not None else Fraction(int(parts[0] or parts[2]), int(parts[1] or parts[3]))
    return -value if sign else value
