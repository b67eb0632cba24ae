"""Answers read as text: spelling that does not matter, words, option letters, units, number bases."""

import re
from typing import NamedTuple

_SYMBOLS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "÷": r"\div ",
        "π": r"\pi ",
        "∞": r"\infty ",
        "≤": r"\le ",
        "≥": r"\ge ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "∅": r"\emptyset ",
        "±": r"\pm ",
        "°": r"^\circ ",
        "\N{NO-BREAK SPACE}": " ",
        "\N{THIN SPACE}": " ",
        "\N{NARROW NO-BREAK SPACE}": " ",
    }
)
_TEXT_COMMAND = r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|mbox|mathrm|mathbf|mathit|mathsf|operatorname|boldsymbol|bm)\s*"
_TEXT = re.compile(_TEXT_COMMAND + r"\{([^{}]*)\}")
_BOLD = re.compile(
    r"\\(?:boldsymbol|bm|mathbf|textbf)\s*\{([^{}]*)\}|\\(?:boxed|fbox|displaystyle|textstyle)(?![a-zA-Z])"
)
_GROUP_SPACE = re.compile(r"(?<=\d)(?:\\[,!;: ]|~|\{,\}|\s)+(?=\d{3}(?!\d))")
_AND = re.compile(r",?\s*" + _TEXT_COMMAND + r"\{\s*,?\s*(?:and|or)\s*,?\s*\}")
_EDGES = re.compile(
    r"^(?:\s|\\[,!;: ]|\\q?quad|\\approx|≈|\*\*|`|~)+|(?:\s|\\[,!;: ]|\\q?quad|\*\*|`|~|[.,;:](?<!\\.)|\\+)+$"
)
_MATH_MARKS = re.compile(r"^(\$\$?|\\\(|\\\[)(.*?)(\$\$?|\\\)|\\\])$", re.DOTALL)


_SPELLINGS = [
    (re.compile(r"\\varnothing(?![a-zA-Z])"), r"\\emptyset"),
    (re.compile(r"\\langle(?![a-zA-Z])"), "("),
    (re.compile(r"\\rangle(?![a-zA-Z])"), ")"),
    (re.compile(r"\\[dt]?binom\s*(\d)\s*(\d)"), r"\\binom{\1}{\2}"),
    (re.compile(r"^(-?\d+)\s+(\d+)/(\d+)$"), r"\1\\frac{\2}{\3}"),
    (re.compile(r"^(-?\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})$"), r"\1\\times 10^{\2}"),
    (re.compile(r"^\\text\s*\{([^{}]*\d[^{}]*)\}$"), r"\1"),
]
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{(\d+)\}|(\d))")


def _as_fraction(match: re.Match[str]) -> str:
    whole, fixed, repeated = match[1] or "0", match[2], match[3] or match[4]
    bottom = 10 ** len(fixed) * (10 ** len(repeated) - 1)
    return rf"\frac{{{int(whole + fixed + repeated) - int(whole + fixed)}}}{{{bottom}}}"


def tidy(text: str) -> str:
    """The answer without marks of math mode, emphasis, outer punctuation and spaces inside numbers, and in one
    spelling where there are several (mixed numbers, repeating decimals, 1e3)."""
    text = text.translate(_SYMBOLS)
    while (shorter := _without_braces(_MATH_MARKS.sub(r"\2", _EDGES.sub("", text)))) != text:
        text = shorter
    text = _BOLD.sub(r"\1", _AND.sub(", ", text))
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return _GROUP_SPACE.sub("", _REPEATING.sub(_as_fraction, text))


def _without_braces(text: str) -> str:
    inner = text[1:-1]
    return inner if text == f"{{{inner}}}" and not re.search(r"[{}\\]", inner) else text


def unwrapped(text: str) -> str:
    """The answer with the contents of its \\text{...} commands in the open and single spaces."""
    text = tidy(text)
    while (shorter := _TEXT.sub(r"\1", text)) != text:
        text = shorter
    return " ".join(re.sub(r"\\[,!;: ]|\\q?quad|~|[{}$]", " ", text).split()).strip(" .,;:")


_OPTION = re.compile(r"\(?([A-Z])(?:\)|\)?[.:])?")
_OPTION_AND_TEXT = re.compile(r"(?:\(([A-Z])\)|([A-Z])[).:])\s+(?P<rest>\S.*)")


_ANNOUNCED = re.compile(r"^(?:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)\s*(?:is\b|:)?\s*)+", re.IGNORECASE)


def option_letter(text: str) -> str | None:
    """The letter of an answer that is one option: A, (A), A., \\text{(A)}, (A) and what it says; else None."""
    text = _ANNOUNCED.sub("", unwrapped(text))
    if match := _OPTION.fullmatch(text):
        return match[1]
    match = _OPTION_AND_TEXT.fullmatch(text)
    if match is None or re.search(r"\([A-Z]\)|\b[A-Z]\b", match["rest"]):
        return None
    return match[1] or match[2]


def letters(text: str) -> list[str]:
    """The letters of a list of options (A, C and E), else an empty list."""
    parts = [part.strip() for part in re.split(r",|;|\band\b|&", unwrapped(text)) if part.strip()]
    found = [match[1] for part in parts if (match := _OPTION.fullmatch(part))]
    return found if len(found) == len(parts) else []


class Words(NamedTuple):
    text: str
    marked: bool  # written as text, not as a product of variables


def words(text: str) -> Words | None:
    """An answer that is made of words only, without case; None for anything with digits, operators or commands."""
    plain = unwrapped(text)
    if not re.fullmatch(r"[^\W\d_][^\W\d_'’ ,()-]*(?:[ ,()'’-]+[^\W\d_]+)*\.?", plain) or not re.search(
        r"[^\W\d_]{2}", plain
    ):
        return None
    said = re.sub(r"[\s,-]+", " ", plain).casefold()
    return Words(_SYNONYMS.get(said, said), _TEXT.search(text) is not None or " " in plain)


_SYNONYMS = {"dne": "does not exist", "no solutions": "no solution"}


class Bracketed(NamedTuple):
    opening: str
    parts: list[str]
    closing: str


def bracketed(text: str) -> Bracketed | None:
    """A tuple, point or interval of two parts or more, taken apart: [0, 1) has the parts 0 and 1."""
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])|\\[bB]igg?[lr]?(?![a-zA-Z])", "", tidy(text)).strip()
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]":
        return None
    depth, parts, start = 0, [], 1
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and position < len(text) - 1:
            return None
        if depth == 1 and character == ",":
            parts.append(text[start:position].strip())
            start = position + 1
    parts.append(text[start:-1].strip())
    return Bracketed(text[0], parts, text[-1]) if len(parts) > 1 and all(parts) else None


_UNITS = {
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "s": "s sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
    "mg": "mg milligram milligrams",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms",
    "oz": "oz ounce ounces",
    "lb": "lb lbs pound pounds",
    "ml": "ml milliliter milliliters millilitre millilitres",
    "l": "l liter liters litre litres",
    "cent": "cent cents",
    "dollar": "dollar dollars usd",
    "euro": "euro euros",
    "am": "am",
    "pm": "pm",
    "mph": "mph miles per hour",
    "degree": "degree degrees",
    "percent": "percent percentage pct",
}
_UNIT_NAMES = {name: unit for unit, names in _UNITS.items() for name in ([names] if unit == "mph" else names.split())}
_UNIT_NAMES |= {"mph": "mph", "miles per hour": "mph"}
_UNIT_MARKS = {"\\$": "dollar", "$": "dollar", "€": "euro"}
_TRAILING_UNIT = re.compile(
    r"[\d})]\s*(?:\\[,!;: ]|~)*\s*(?:" + _TEXT_COMMAND + r"\{([^{}]*)\}|([A-Za-z][A-Za-z. ]*))\s*(?:\^\s*\{?(\d)\}?)?$"
)
_POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}


def unit_of(text: str) -> tuple[str, str] | None:
    """The known unit of a tidied answer and its power (`3 \\text{ cm}^2` -> ("cm", "2")), or None."""
    if re.search(r"\\%$|%$", text):
        return "percent", ""
    if re.search(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})$", text):
        return "degree", ""
    for mark, unit in _UNIT_MARKS.items():
        if text.startswith(mark):
            return unit, ""
    match = _TRAILING_UNIT.search(text)
    if match is None:
        return None
    name, power = (match[1] or match[2] or "").replace(".", "").strip().lower(), match[3] or ""
    first, _, rest = name.partition(" ")
    if first in _POWERS:
        name, power = rest, _POWERS[first]
    return (_UNIT_NAMES[name], power) if name in _UNIT_NAMES else None


def without_unit(text: str) -> str:
    """A tidied answer without the known unit that it ends with. Single letters count as units only inside \\text."""
    match, unit = _TRAILING_UNIT.search(text), unit_of(text)
    if match is None or unit is None or unit[0] == "percent" or (match[1] is None and len(match[2].strip()) < 2):
        return text
    return text[: match.start() + 1]


def base_of(text: str) -> str | None:
    """The base of a number written with one (`2516_8`, `1011_{2}`, `3F_{\\text{16}}`), or None."""
    match = re.fullmatch(r"-?[0-9A-Za-z.]+_\s*\{?\s*(?:\\text\{)?\s*(\d+)\s*\}*", text)
    return match[1] if match else None
