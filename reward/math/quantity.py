"""A number with what stands around it: currency, percent, magnitude (million), unit, and words that change nothing."""

import itertools
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from reward.math.commands import names
from reward.math.parse import TRIGONOMETRY
from reward.math.units import CURRENCIES, Unit, unit_of

_MAGNITUDES = {
    name: Fraction(10) ** power
    for power, names in {
        1: "tens",
        2: "hundred hundreds 百",
        3: "thousand thousands k 千",
        4: "万",
        5: "lakh lakhs lac lacs",
        6: "million millions mn mln",
        7: "crore crores",
        8: "亿",
        9: "billion billions bn bln",
        12: "trillion trillions tn",
    }.items()
    for name in names.split()
}
_FRACTIONS = {
    "half": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "seventh": 7,
    "eighth": 8,
    "ninth": 9,
    "tenth": 10,
    "hundredth": 100,
    "thousandth": 1000,
    "millionth": 10**6,
}
_MAGNITUDES |= {f"{name}s": Fraction(1, parts) for name, parts in _FRACTIONS.items()}
_MAGNITUDES |= {"halves": Fraction(1, 2), "dozen": Fraction(12), "dozens": Fraction(12)}
# These count where nothing follows them: 1 fifth, but 12 fifth graders.
_LAST_MAGNITUDES = {name: Fraction(1, parts) for name, parts in _FRACTIONS.items()}
_LAST_MAGNITUDES |= {"per mille": Fraction(1, 1000), "ppm": Fraction(1, 10**6), "ppb": Fraction(1, 10**9)}
_ATTACHED = {"k": 3, "K": 3, "M": 6, "m": 6, "B": 9, "b": 9, "T": 12}  # behind the digits of an amount of money
_PERCENT = {"percent", "percentage", "pct", "per cent"}

# Words that change what a number says: with one of them in it a text is no mere label, remark or noun.
_MEANING = names(
    "not no non never neither nor cannot negative minus plus less more fewer greater larger smaller least most than "
    "over under above below between except unless excluding without up down to through until either or maybe perhaps "
    "possibly otherwise any all every none half third quarter twice double triple times dozen squared cubed root base "
    "mod modulo infinite infinitely undefined if when for where and but at remainder factorial power e pi i off each "
    "wrong incorrect false"
)
# Mathematics, and what negates or bounds: isn't, 不是, 至少.
_SPEAKS = re.compile(r"[\d=<>+*/^|\\$%]|n't\b|不(?!同)|没|并非|至少|至多|最少|最多|大于|小于|超过|多于|少于")
_TEXT = r"\\text\{([^{}]*)\}"
_POWER = r"(?:\s*\^\s*(?:\{\s*(-?\d)\s*\}|(\d)))?"
_UNIT_FRACTION = re.compile(rf"\\frac\{{(?P<head>[^{{}}]*?)\s*{_TEXT}{_POWER}\s*\}}\{{\s*1?\s*{_TEXT}{_POWER}\s*\}}")
_PLAIN_UNIT_FRACTION = re.compile(r"(?<=[\d}])\s*\\frac\{([a-z]{2,})\}\{([a-z]+)\}$")
_MILLIONS = re.compile(r"(?<=\d)\\text\{M\}$")  # 5M; 0.5 M is molar
_LAST = re.compile(
    rf"(?P<text>{_TEXT}){_POWER}\s*$|(?P<percent>\\?%)\s*$|(?P<degree>\^\s*(?:\\circ|\{{\s*\\circ\s*\}}))\s*$"
    rf"|(?P<mark>[{re.escape(CURRENCIES)}]|\\\$)\s*$|(?P<link>/|\\cdot)\s*$"
    rf"|(?<![a-zA-Z\\])(?P<word>[A-Za-z一-鿿][A-Za-z一-鿿.]*){_POWER}\s*$|\((?P<remark>[A-Za-z .]{{3,}})\)\s*$"
)
_COUNTRY = re.compile(r"^\\text\{\s*(?:US|HK|CA|AU|NZ)\s*\}\s*(?=\\?\$)")
_FIRST = re.compile(
    rf"^(?P<sign>[+-]?)\s*(?:(?P<mark>(?:US|HK|CA|AU|NZ|R|C|A|S)?\s*(?:\\\$|[{re.escape(CURRENCIES)}]))"
    rf"|{_TEXT}|(?P<code>[A-Z]{{3}}|Rs\.?)(?=\s*[\d.]))\s*"
)
_VALUED = re.compile(r"[\d})\]!|]\s*$|\\(?:pi|infty|circ)\s*$|(?:^|[^a-zA-Z\\])[a-zA-Z]\s*$")
_PART = re.compile(
    r"(\d[\d.]*|\\frac\{\d+\}\{\d+\})\s*(?:\\text\{([^{}]*)\}|([A-Za-z]+)\.?)(?:\s*(?:,|\\land|and)\s*|\s+|$)"
)
_ARC = re.compile(
    r"(\d+)\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})\s*(\d+(?:\.\d+)?)\s*'(?!')(?:\s*(\d+(?:\.\d+)?)\s*(?:''|\"))?"
)
_GREEK = re.compile(
    r"(?<=[\d}\s])(?:(?:\\text\{\s*([kMGm])\s*\}|([kMGm]))?\s*\\Omega(?![a-zA-Z])|\\mu\s*\\text\{\s*(\w+)\s*\})\s*$"
)
_PER = re.compile(r"\d(?:\s+(?=[a-zA-Z]\s*/)|\s*(?=[a-zA-Z]{2}))([a-zA-Z]+)\s*/\s*$")
_LETTERED = re.compile(r"(-?[\d.,]*\d\s*)(?:([a-zA-Z])|\\text\{\s*([a-zA-Z])\s*\})")


_DIRECTION = re.compile(
    r"(?:^|\s)(?:(?:due|to\s+the|towards?\s+the)\s+)?"
    r"(north|south|east|west|northeast|northwest|southeast|southwest|left|right|clockwise|counterclockwise|anticlockwise"
    r"|up(?=ward)|down(?=ward)|in(?=ward)|out(?=ward)|for(?=ward)|back(?=ward))(?:wards?)?$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Quantity:
    """`head` (the mathematics) times `factor`, in `unit`; `percent` where it is one; `direction` where it has one;
    `noun`: other words behind it, what is counted."""

    head: str
    factor: Fraction = Fraction(1)
    unit: Unit | None = None
    percent: bool = False
    direction: str = ""
    noun: str = ""

    @property
    def plain(self) -> bool:
        return self.factor == 1 and self.unit is None and not self.percent


def harmless(said: str) -> bool:
    """Whether words around a number say nothing about it: a label, a remark, a noun."""
    words = re.findall(r"[^\W\d_]+", said.lower())
    return not _SPEAKS.search(said) and not _MEANING.intersection(words)


@lru_cache(maxsize=8192)
def quantity_of(text: str) -> Quantity:
    """A tidied answer taken apart. What cannot be taken off stays in `head`."""
    if compound := _compound(text):
        return compound
    text = _GREEK.sub(_greek_unit, text)
    text = _UNIT_FRACTION.sub(_unit_fraction, text)
    text = _MILLIONS.sub(r"\\text{million}", text)
    text = _PLAIN_UNIT_FRACTION.sub(r"\\text{\1/\2}", text)
    return _with_tail(_with_front(text))


def is_sum(text: str) -> bool:
    """Whether an answer is one quantity in several units: 3 hours and 20 minutes."""
    return _compound(text) is not None


def _compound(text: str) -> Quantity | None:
    """3 hours 20 minutes, 5 ft 3 in, 30° 15': a sum of one kind, the larger units first."""
    if match := _ARC.fullmatch(text):
        degrees, minutes, seconds = match.groups()
        return Quantity(rf"{degrees} + {minutes} / 60 + {seconds or 0} / 3600", unit=unit_of("°"))
    parts = list(_PART.finditer(text))
    if len(parts) < 2 or "".join(part[0] for part in parts) != text:
        return None
    units = [unit_of(part[2] or part[3]) for part in parts]
    if any(unit is None or unit.dimensions != units[0].dimensions for unit in units):  # type: ignore[union-attr]
        return None
    sizes = [
        rf"{part[1]} \cdot \frac{{{unit.size.numerator}}}{{{unit.size.denominator}}}"
        for part, unit in zip(parts, units, strict=True)
        if unit
    ]
    assert units[0] is not None
    if any(one.size <= other.size for one, other in itertools.pairwise(units)):  # type: ignore[union-attr]
        return None
    return Quantity(" + ".join(sizes), unit=Unit(Fraction(1), units[0].dimensions))


def alternatives(text: str) -> list[Quantity]:
    """Other readings of a number with one letter behind it: 5k as 5000, 2.5M as 2,500,000, 5m as 5 metres."""
    match = _LETTERED.fullmatch(text)
    if match is None:
        return []
    number, letter = match[1].strip(), match[2] or match[3]
    made = [Quantity(number, factor=Fraction(10) ** _ATTACHED[letter])] if letter in _ATTACHED else []
    return [*made, Quantity(number, unit=unit)] if (unit := unit_of(letter)) else made


def _greek_unit(match: re.Match[str]) -> str:
    return rf"\text{{μ{match[3]}}}" if match[3] else rf"\text{{{match[1] or match[2] or ''}Ω}}"


def _unit_fraction(match: re.Match[str]) -> str:
    head, top, *powers, bottom, p, q = match.groups()
    first, second = powers[0] or powers[1], p or q
    unit = f"{top.strip()}{f'^{first}' if first else ''}/{bottom.strip()}{f'^{second}' if second else ''}"
    return rf"{head}\text{{{unit}}}"


def _with_front(text: str) -> Quantity:
    """Without the currency that stands before the number."""
    text = _COUNTRY.sub("", text)
    match = _FIRST.match(text)
    if match is None:
        return Quantity(text)
    said = match["mark"] or match["code"] or match[3] or ""
    unit = unit_of(re.sub(r"\\|^(?:US|HK|CA|AU|NZ|R|C|A|S)\s*(?=\\?\$)", "", said.strip()))
    rest = text[match.end() :].strip()
    if unit is None or not rest or not set(CURRENCIES + "fpeno") & {name[0] for name, _ in unit.dimensions}:
        return Quantity(text)
    return Quantity(match["sign"] + rest, unit=unit)


def _with_tail(front: Quantity) -> Quantity:
    """Without the unit, the magnitude, the percent sign and the words that stand behind the number."""
    head, pieces = front.head.rstrip(), list[str]()
    best = front
    while match := _LAST.search(head):
        if match["word"] and not match["text"] and not _may_be_unit(head, match):
            break
        piece = _piece(match)
        if TRIGONOMETRY.search(head) and re.match(r"°|deg", piece.strip()):
            break
        head, pieces = head[: match.start()].rstrip(), [piece, *pieces]
        if not head:
            break
        if _VALUED.search(head) and (read := _read(front, head, " ".join(pieces))):
            best = read
    if best is front and front.unit is not None and (match := re.search(r"(?<=\d)\s*([kKmMbBT])$", front.head)):
        return replace(front, head=front.head[: match.start()], factor=Fraction(10) ** _ATTACHED[match[1]])
    return best


def _may_be_unit(head: str, match: re.Match[str]) -> bool:
    """Whether a plain word at the end can be a unit or a noun, and no variables: it has two letters or more, or stands
    apart from a number and is a unit's symbol."""
    word, before = match["word"], head[: match.start()]
    if len(word.strip(".")) > 1 or not word.isascii():
        return True
    if unit_of(word) is None:
        return False
    if (above := _PER.search(before)) and unit_of(above[1]):
        return True
    return re.search(r"\d\s+$|\^\s*(?:\\circ|\{\s*\\circ\s*\})\s*$", before) is not None


def _piece(match: re.Match[str]) -> str:
    if match["percent"]:
        return "%"
    if match["degree"]:
        return "°"
    if match["mark"]:
        return match["mark"].replace("\\", "")
    if match["link"]:
        return "/" if match["link"] == "/" else "·"
    said = match[2] if match["text"] else match["word"] or f"({match['remark']})"
    powers = [group for group in match.groups()[2:4] + match.groups()[8:10] if group]
    return f"{said}^{powers[0]}" if powers and re.fullmatch(r"-?\d", powers[0]) else said


def _read(front: Quantity, head: str, said: str) -> Quantity | None:
    """The quantity with this head, if what is said behind it can be taken off."""
    said = said.strip()
    if match := _DIRECTION.search(said):
        front = replace(front, direction=match[1].lower().replace("anti", "counter"))
        said = said[: match.start()].strip()
    factor = front.factor
    while match := re.match(r"([^\W\d_]+)\.?(?:\s+of)?(?:\s+|$)", said):
        size = None if match[1] == "K" else _MAGNITUDES.get(match[1].lower())  # K is kelvin
        if size is None:
            break
        factor, said = factor * size, said[match.end() :].strip()
    if size := _LAST_MAGNITUDES.get(said.lower()):
        factor, said = factor * size, ""
    if not said:
        return replace(front, head=head, factor=factor)
    if said in ("%", r"\%") or said.lower().strip(" .()") in _PERCENT:
        return replace(front, head=head, factor=factor, percent=True)
    if (unit := unit_of(said)) and (front.unit is None or front.unit.dimensions == unit.dimensions):
        return replace(front, head=head, factor=factor, unit=front.unit or unit)
    if unit and not re.match(r"/|per\b", said):
        return None
    counted = harmless(re.sub(r"\^-?\d|/", " ", said))
    return replace(front, head=head, factor=factor, noun=said.casefold()) if counted else None
