"""An answer in one spelling: no marks of math mode, no emphasis or outer punctuation, numbers without spaces inside."""

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from reward.math.characters import in_latex
from reward.math.commands import FUNCTIONS
from reward.math.latex import one_spelling

_EDGES = re.compile(
    r"^(?:\s|\\[,!;: ]|\\q?quad|\\approx(?![a-zA-Z])|\\sim(?![a-zA-Z])|\*\*|`|~|[,;:])+"
    r"|(?:\s|\\[,!;: ]|\\q?quad|\*\*|`|~|[.,;:](?<!\\.)|\\+)+$"
)
_MATH_MARKS = re.compile(r"^(\$\$?|\\\(|\\\[)(.*?)(\$\$?|\\\)|\\\])$", re.DOTALL)
_ESCAPED_TWICE = re.compile(r"\\\\(?=[a-zA-Z]{2})")  # "\\frac" of an answer that went through JSON once too often
_GROUPED = re.compile(r"(?<=\d)(?:(?:\\[,!;: ]|~|\{,\}|\s)+|,\s*\\!\s*)(?=\d{3}(?!\d))")
_BRACE = re.compile(r"\\[\s\S]|[{}]")
_ONE_TEXT = re.compile(r"\\text\{([^{}]*\d[^{}]*)\}")

_UNION = re.compile(r"\\(?:cup|cap|setminus)(?![a-zA-Z])")
_PLAIN_BRACES = re.compile(r"(?:(?<![\w\\}^_])|(?<=\\cup)|(?<=\\cap))\{([^{}\\()\[\]]+)\}")  # {1,2} \cup {3}

_DOTS = re.compile(r"\.{3,}")
_PLAIN_ROOT = re.compile(r"(?<![a-zA-Z\\])sqrt\s*(?=[({])")
_PLAIN_WORDS = [
    (re.compile(rf"(?<![a-zA-Z\\{{])({'|'.join(sorted(FUNCTIONS, reverse=True))})(?=[ (^_\d])"), r"\\\1"),
    (re.compile(r"(?<![a-zA-Z\\{])pi(?![a-zA-Z])"), r"\\pi "),
    (re.compile(r"(?<![a-zA-Z\\{])(?:infinity|inf|oo)(?![a-zA-Z])"), r"\\infty "),
    (re.compile(r"(?<!\\)(?:<=|=<)"), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"!=|<>|/="), r"\\neq "),
    (re.compile(r"\+/-|^\+-"), r"\\pm "),
    (re.compile(r"\*\*"), "^"),
]
_SPELLINGS: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"\\text\{\s*\(?\s*mod(?:ulo)?\.?\s*(\d+)\s*\)?\s*\}"), r"\\pmod{\1}"),
    (
        re.compile(r"(?:\\text\{\s*\(?\s*mod(?:ulo)?\.?\s*\}|(?<![a-zA-Z\\{])mod(?:ulo)?(?![a-zA-Z]))\s*(\d+)"),
        r"\\pmod{\1}",
    ),
    (re.compile(r"^(-?\d+)\s+(\d+)/(\d+)$"), r"\1\\frac{\2}{\3}"),
    (re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})(?![\w.])"), r"\1\\times 10^{\2}"),
    (re.compile(r"(?<=[\d)}])\s*[xX]\s*(?=10\s*\^)"), r"\\times "),
    (re.compile(r"\\text\{[^{}]*\}|\^\s*([+-]\d+)"), lambda match: f"^{{{match[1]}}}" if match[1] else match[0]),
    (re.compile(r"\^\s*(?:\{\s*((?:\\prime\s*)+)\}|\\prime(?![a-zA-Z]))"), lambda match: "'" * match[0].count("prime")),
    (
        re.compile(r"(?<=[)\]}])\s*(?:\\text\{\s*(?:U|union)\s*\}|U|union)\s*(?=[(\[]|\\\{)"),
        r" \\cup ",
    ),
]
_OVERLINED = re.compile(
    r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{(\d+)\}|(\d))(?:\s*(\d*)\\dot\s*(?:\{(\d)\}|(\d)))?"
)
# ]0,1[ for (0,1), where it can be no two lists beside each other
_TURNED = re.compile(
    r"(?:(?<![^\s,;({=])|(?<=\\cup)|(?<=\\cap)|(?<=\\in))([\[\]])([^\[\](),;]*[,;][^\[\](),;]*)([\[\]])"
    r"(?=\s*(?:$|\\cup|\\cap|\\setminus|[,;)}]))"
)
_SPACED = re.compile(r"\d+(?:\s+\d+)+")  # 5 6 is no 56
_QUOTED = re.compile(r"^(['\"])(.+)\1$", re.DOTALL)
_IN_BRACKETS = re.compile(r"(?<![\w.])(\d*)\.(\d*)\((\d+)\)(?:\s*(?:\.\.\.|\\ldots))?")
_TRAILING_DOTS = re.compile(r"(?<![\w.])(\d*)\.(\d+)\s*(?:\.{2,}|\\ldots)")


@lru_cache(maxsize=8192)
def tidy(text: str) -> str:
    """The answer in one spelling (mixed numbers, repeating decimals and 1e3 too). Text stays in `\\text{...}`."""
    text = in_latex(text)
    if r"\begin" not in text:
        text = _ESCAPED_TWICE.sub(r"\\", text)
    if _UNION.search(text):
        text = _PLAIN_BRACES.sub(r"\{\1\}", text)
    text = _PLAIN_ROOT.sub(r"\\sqrt", _DOTS.sub(r"\\ldots ", text))
    text = trimmed(one_spelling(trimmed(_GROUPED.sub("", text))))
    if match := _ONE_TEXT.fullmatch(text):
        text = match[1].strip()
    for pattern, replacement in (*_PLAIN_WORDS, *_SPELLINGS):
        text = pattern.sub(replacement, text)
    if _SPACED.fullmatch(text):
        text = ", ".join(text.split())
    if "[" in text:
        text = _TURNED.sub(_interval, text)
    if "." in text:
        text = _TRAILING_DOTS.sub(_repeating, _IN_BRACKETS.sub(_bracketed, _OVERLINED.sub(_overlined, text)))
    return text.strip()


def trimmed(text: str) -> str:
    """Without marks of math mode, emphasis, outer punctuation, and braces around all of it."""
    while (shorter := _without_braces(_MATH_MARKS.sub(r"\2", _QUOTED.sub(r"\2", _EDGES.sub("", text))))) != text:
        text = shorter
    return text


def _without_braces(text: str) -> str:
    if not text.startswith("{") or not text.endswith("}"):
        return text
    braces = _BRACE.finditer(text)
    depth = 0
    for brace in braces:
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[1:-1] if brace.end() == len(text) else text
    return text


def _interval(match: re.Match[str]) -> str:
    opening, ends, closing = match.groups()
    return f"{'(' if opening == ']' else '['}{ends}{')' if closing == '[' else ']'}"


def _fraction(whole: str, fixed: str, period: str) -> str:
    value = Fraction(
        int(whole + fixed + period) - int(whole + fixed or "0"), 10 ** len(fixed) * (10 ** len(period) - 1)
    )
    return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _overlined(match: re.Match[str]) -> str:
    first, last = match[3] or match[4], match[6] or match[7]
    return _fraction(match[1], match[2], first + (match[5] or "") + last if last else first)


def _bracketed(match: re.Match[str]) -> str:
    return _fraction(match[1], match[2], match[3])


def _repeating(match: re.Match[str]) -> str:
    """A decimal that ends in dots: its shortest period where its digits show one twice, else the digits alone."""
    whole, digits = match[1], match[2][:40]
    for size in range(1, len(digits) // 2 + 1):
        start = len(digits) - size
        while start > 0 and digits[start - 1] == digits[start - 1 + size]:
            start -= 1
        if len(digits) - start >= 2 * size:
            return _fraction(whole, digits[:start], digits[start : start + size])
    return f"{whole}.{match[2]}"
