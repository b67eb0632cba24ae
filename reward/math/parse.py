"""LaTeX of one expression to a sympy object. latex2sympy parses by a grammar: no text is evaluated as code."""

import logging
import re
from functools import lru_cache
from typing import Any

from latex2sympy2_extended.latex2sympy2 import latex2sympy
from math_verify.grader import should_treat_as_complex
from sympy import Expr, I, MatrixBase, Symbol, nan, zoo

from reward.math.structure import closing

for _name in ("math_verify", "latex2sympy2_extended"):
    logging.getLogger(_name).setLevel(logging.ERROR)

_START = r"(?<![\w^_.{}\\)\]])"
_MIXED = re.compile(rf"({_START}|(?<=^-)|(?<=[-+=(,]))(\d+)\s*\\frac\{{(\d+)\}}\{{(\d+)\}}")
_TIMES = re.compile(rf"{_START}(\d+(?:\.\d+)?)\s*(?=\()")
_SEPARATED = re.compile(r"\d\s+\.?\d|\d\.\d+\.\d")
_LEADING_POINT = re.compile(r"(?<![\d.])\.(?=\d)")
_DEGREES = re.compile(
    r"(\d+(?:\.\d+)?|[a-zA-Z]|\\[a-zA-Z]+ ?)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})|"
    r"(\d+(?:\.\d+)?|[a-zA-Z])\s*\\text\{ *(?:degrees?|deg\.?) *\}"
)
TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc|operatorname\{cis\})(?![a-zA-Z])")
_CIS = re.compile(r"\\operatorname\{cis\}\s*(\(|\\frac\{[^{}]*\}\{[^{}]*\}|\\[a-zA-Z]+|\d+(?:\.\d+)?|[a-zA-Z])")
_CONJUGATE = re.compile(r"\\overline\{([^{}]*(?<![a-zA-Z\\])i(?![a-zA-Z])[^{}]*)\}")
_I = re.compile(r"(?<![a-zA-Z\\])i(?![a-zA-Z])")
_COMBINATIONS = [
    re.compile(r"(?:\{\})?(?:_|\^)\{?(\w+)\}?C_\{?(\w+)\}?"),
    re.compile(r"(?<![a-zA-Z])C\((\w+),\s*(\w+)\)"),
]


@lru_cache(maxsize=8192)
def parsed(text: str) -> Any:
    """The sympy object (expression, matrix, set, relation) of tidied LaTeX without units and words; None where it is
    none, or a division by zero. `i` is the imaginary unit."""
    if not text or _SEPARATED.search(text):
        return None
    text = text.replace(r"\$", "").replace("$", "")
    if TRIGONOMETRY.search(text):
        text = _DEGREES.sub(lambda m: rf"(\frac{{{m[1] or m[2]}\pi}}{{180}})", text)
    while match := _CIS.search(text):
        text = _exponential(text, match)
    text = _CONJUGATE.sub(lambda m: f"({_I.sub('(-i)', m[1])})", text)
    for pattern in _COMBINATIONS:
        text = pattern.sub(r"\\binom{\1}{\2}", text)
    text = _MIXED.sub(_mixed, _braced_powers(_LEADING_POINT.sub("0.", text)))
    text = _TIMES.sub(r"\1 \\cdot ", text)
    try:
        made = latex2sympy(text, is_real=not should_treat_as_complex(text), normalization_config=None)
    except Exception:  # what the grammar does not know ends in exceptions of any class
        return None
    return None if made in (nan, zoo) else _with_imaginary_unit(made)


def _mixed(match: re.Match[str]) -> str:
    whole, top, bottom = int(match[2]), int(match[3]), int(match[4])
    if top >= bottom:
        return rf"{match[2]} \cdot \frac{{{top}}}{{{bottom}}}"
    return rf"\frac{{{whole * bottom + top}}}{{{bottom}}}"


def _braced_powers(text: str) -> str:
    """x^(1/2) as x^{1/2}."""
    while match := re.search(r"\^\s*\(", text):
        end = closing(text, match.end() - 1)
        if end < 0:
            break
        text = f"{text[: match.start()]}^{{{text[match.end() : end]}}}{text[end + 1 :]}"
    return text


def _exponential(text: str, match: re.Match[str]) -> str:
    """cis x as e^{ix}."""
    end = closing(text, match.start(1)) if match[1] == "(" else -1
    argument, end = (text[match.end() : end], end + 1) if end > 0 else (match[1], match.end())
    return f"{text[: match.start()]}e^{{i({argument})}}{text[end:]}"


def _with_imaginary_unit(made: Any) -> Any:
    if isinstance(made, Expr | MatrixBase):
        units = {symbol: I for symbol in made.free_symbols if isinstance(symbol, Symbol) and symbol.name == "i"}
        return made.xreplace(units) if units else made
    return made
