"""Units of measure: their names, sizes and dimensions, so that 5 m/s is 5 metres per second, 500 cm is 5 m and 5 kg is
not 5 g."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

Dimensions = dict[str, int]


@dataclass(frozen=True)
class Unit:
    """`size` in the base units of `dimensions`, ((base, power), ...) in order."""

    size: Fraction
    dimensions: tuple[tuple[str, int], ...]


_PREFIXES = {"n": -9, "μ": -6, "u": -6, "m": -3, "c": -2, "d": -1, "k": 3, "M": 6, "G": 9, "T": 12}
_PREFIX_NAMES = {"nano": -9, "micro": -6, "milli": -3, "centi": -2, "deci": -1, "kilo": 3, "mega": 6, "giga": 9}

# symbol, names, size and dimensions of units that take prefixes; g is a thousandth of the base unit
_PREFIXED: list[tuple[str, str, str, str]] = [
    ("m", "meter metre", "1", "m"),
    ("g", "gram gramme", "1/1000", "kg"),
    ("s", "", "1", "s"),
    ("A", "amp ampere", "1", "A"),
    ("K", "", "1", "K"),
    ("mol", "mole", "1", "mol"),
    ("N", "newton", "1", "kg m s-2"),
    ("J", "joule", "1", "kg m2 s-2"),
    ("W", "watt", "1", "kg m2 s-3"),
    ("Pa", "pascal", "1", "kg m-1 s-2"),
    ("Hz", "hertz", "1", "s-1"),
    ("C", "coulomb", "1", "A s"),
    ("V", "volt", "1", "kg m2 s-3 A-1"),
    ("F", "farad", "1", "A2 s4 kg-1 m-2"),
    ("Ω", "ohm", "1", "kg m2 s-3 A-2"),
    ("T", "tesla", "1", "kg s-2 A-1"),
    ("Wb", "weber", "1", "kg m2 s-2 A-1"),
    ("H", "henry", "1", "kg m2 s-2 A-2"),
    ("L", "liter litre", "1/1000", "m3"),
    ("l", "", "1/1000", "m3"),
    ("eV", "electronvolt", "1.602176634e-19", "kg m2 s-2"),
    ("cal", "calorie", "4.184", "kg m2 s-2"),
    ("Wh", "", "3600", "kg m2 s-2"),
    ("bit", "", "1", "bit"),
    ("B", "byte", "8", "bit"),
]
_PLAIN: list[tuple[str, str, str]] = [  # names, size, dimensions
    ("sec secs second seconds", "1", "s"),
    ("min mins minute minutes", "60", "s"),
    ("h hr hrs hour hours", "3600", "s"),
    ("d day days", "86400", "s"),
    ("week weeks wk wks", "604800", "s"),
    ("month months", "1", "month"),
    ("year years yr yrs", "12", "month"),
    ("decade decades", "120", "month"),
    ("century centuries", "1200", "month"),
    ("micron microns", "1e-6", "m"),
    ("in inch inches", "0.0254", "m"),
    ("ft foot feet", "0.3048", "m"),
    ("yd yds yard yards", "0.9144", "m"),
    ("mi mile miles", "1609.344", "m"),
    ("acre acres", "4046.8564224", "m2"),
    ("ha hectare hectares", "10000", "m2"),
    ("cc", "1e-6", "m3"),
    ("cup cups", "1", "cup"),
    ("pt pint pints", "2", "cup"),
    ("qt quart quarts", "4", "cup"),
    ("gal gallon gallons", "16", "cup"),
    ("oz ounce ounces", "0.028349523125", "kg"),
    ("lb lbs pound pounds", "0.45359237", "kg"),
    ("t tonne tonnes", "1000", "kg"),
    ("ton tons", "1", "ton"),
    ("dB decibel decibels", "1", "dB"),
    ("mph", "0.44704", "m s-1"),
    ("kph kmh kmph", "5/18", "m s-1"),
    ("knot knots", "1", "knot"),
    ("rpm", "1/60", "revolution s-1"),
    ("rev revolution revolutions", "1", "revolution"),
    ("atm atmosphere atmospheres", "101325", "kg m-1 s-2"),
    ("bar bars", "100000", "kg m-1 s-2"),
    ("mmHg torr", "1", "mmHg"),
    ("psi", "1", "psi"),
    ("erg ergs", "1e-7", "kg m2 s-2"),
    ("dyne dynes dyn", "1e-5", "kg m s-2"),
    ("kelvin kelvins", "1", "K"),
    ("°C celsius centigrade", "1", "°C"),
    ("°F fahrenheit", "1", "°F"),
    ("° degree degrees deg degs", "1", "°"),
    ("rad rads radian radians", "1", "rad"),
    ("¢ cent cents", "1/100", "$"),
    ("penny pennies pence", "1", "penny"),
    ("$ dollar dollars buck bucks usd us$", "1", "$"),
    ("€ euro euros eur", "1", "€"),
    ("£ gbp quid", "1", "£"),
    ("¥ yen jpy", "1", "¥"),
    ("元 yuan rmb cny", "1", "元"),
    ("₹ rupee rupees rs inr", "1", "₹"),
    ("₩ won krw", "1", "₩"),
    ("₽ ruble rubles rouble roubles rub", "1", "₽"),
    ("₺ lira try", "1", "₺"),
    ("฿ baht thb", "1", "฿"),
    ("₫ dong vnd", "1", "₫"),
    ("₱ php", "1", "₱"),
    ("₦ naira ngn", "1", "₦"),
    ("₴ hryvnia uah", "1", "₴"),
    ("₪ shekel shekels ils", "1", "₪"),
    ("fr chf franc francs", "1", "franc"),
    ("peso pesos", "1", "peso"),
    ("₿ btc bitcoin bitcoins", "1", "₿"),
    ("am a.m a.m.", "1", "am"),
    ("pm p.m p.m.", "1", "pm"),
    # Chinese
    ("米", "1", "m"),
    ("厘米", "1/100", "m"),
    ("毫米", "1/1000", "m"),
    ("千米 公里", "1000", "m"),
    ("平方米", "1", "m2"),
    ("平方厘米", "1/10000", "m2"),
    ("平方千米", "1000000", "m2"),
    ("立方米", "1", "m3"),
    ("立方厘米", "1e-6", "m3"),
    ("克", "1/1000", "kg"),
    ("千克 公斤", "1", "kg"),
    ("吨", "1000", "kg"),
    ("升", "1/1000", "m3"),
    ("毫升", "1e-6", "m3"),
    ("秒", "1", "s"),
    ("分钟", "60", "s"),
    ("小时", "3600", "s"),
    ("天", "86400", "s"),
    ("年", "12", "month"),
    ("月 个月", "1", "month"),
    ("度", "1", "°"),
    ("美元", "1", "$"),
]
CURRENCIES = "$€£¥元₹₩₽₺฿₫₱₦₴₪₿¢"


def _dimensions(text: str) -> tuple[tuple[str, int], ...]:
    powers: Dimensions = {}
    for part in text.split():
        match = re.fullmatch(r"(\D+?)(-?\d+)?", part)
        assert match is not None
        powers[match[1]] = int(match[2] or 1)
    return tuple(sorted(powers.items()))


def _table() -> tuple[dict[str, Unit], dict[str, Unit]]:
    """Units by symbol (upper and lower case matter) and by name."""
    symbols: dict[str, Unit] = {}
    names: dict[str, Unit] = {}
    for symbol, words, size, dimensions in _PREFIXED:
        base = Unit(Fraction(size), _dimensions(dimensions))
        for prefix, power in {"": 0, **_PREFIXES}.items():
            symbols.setdefault(prefix + symbol, Unit(base.size * Fraction(10) ** power, base.dimensions))
        for word in words.split():
            for prefix, power in {"": 0, **_PREFIX_NAMES}.items():
                unit = Unit(base.size * Fraction(10) ** power, base.dimensions)
                names |= {prefix + word: unit, prefix + word + "s": unit}
    for words, size, dimensions in _PLAIN:
        unit = Unit(Fraction(size), _dimensions(dimensions))
        for word in words.split():
            names[word.lower()] = symbols[word] = unit
    return symbols, names


_SYMBOLS, _NAMES = _table()
_SCALES = {"c": _SYMBOLS["°C"], "celsius": _SYMBOLS["°C"], "f": _SYMBOLS["°F"], "fahrenheit": _SYMBOLS["°F"]}
_POWER_WORDS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_POWER = re.compile(r"\^?\(?(-?\d)\)?")
_PIECE = re.compile(r"[/()·*]|per(?![a-z])|[^\W\d_]+[.$]?[^\W\d_]*\.?|[°$€£¥₹₩₽₺฿₫₱₦₴₪₿¢]+[A-Z]?|\^?\(?-?\d+\)?|\S")


def named_unit(word: str) -> Unit | None:
    """The unit with one name or symbol."""
    word = word.strip(".") if word.lower() not in ("a.m.", "p.m.") else word
    if unit := _SYMBOLS.get(word):
        return unit
    lower = word.lower()
    return _NAMES.get(lower, _SYMBOLS.get(lower)) if len(word) > 1 else None


@lru_cache(maxsize=4096)
def unit_of(said: str) -> Unit | None:
    """The unit that a text names: `cm`, `miles per hour`, `kg m/s^2`, `square feet`; None where any part of it is no
    unit."""
    product = _Product()
    return product.unit() if all(map(product.takes, _PIECE.findall(said.strip()))) else None


class _Product:
    """A unit read piece by piece."""

    def __init__(self) -> None:
        self.size, self.powers = Fraction(1), Dimensions()
        self.last: tuple[Unit, int] | None = None  # the last unit and its power
        self.sign, self.depth, self.waiting = 1, 0, 1

    def takes(self, piece: str) -> bool:
        """Whether a piece belongs to a unit."""
        word = piece.lower().strip(".")
        if piece in "()":
            self.depth += 1 if piece == "(" else -1
            self.sign = self.sign if self.depth else 1
        elif piece in ("/", "per"):
            self.sign, self.last = -1, None
        elif word in _POWER_WORDS:
            self._power_word(word)
        elif power := _POWER.fullmatch(piece):
            return self._raise(int(power[1]))
        elif piece not in ("·", "*", "a", "an"):
            return self._named(piece, word)
        return True

    def unit(self) -> Unit | None:
        if self.last is None:
            return None
        return Unit(self.size, tuple(sorted((name, power) for name, power in self.powers.items() if power)))

    def _named(self, piece: str, word: str) -> bool:
        unit = named_unit(piece)
        if self.last is not None and self.last[0] == _SYMBOLS["°"] and word in _SCALES:
            self._times(self.last[0], -self.last[1])
            unit = _SCALES[word]
        if unit is None:
            return False
        self.last = unit, self.sign * self.waiting
        self._times(*self.last)
        self.waiting, self.sign = 1, self.sign if self.depth else 1
        return True

    def _power_word(self, word: str) -> None:
        """`square feet` before a unit, `feet squared` behind one."""
        if word.endswith("d") and self.last is not None:
            self._raise(_POWER_WORDS[word])
        else:
            self.waiting = _POWER_WORDS[word]

    def _raise(self, power: int) -> bool:
        if self.last is None:
            return False
        self._times(self.last[0], self.last[1] * (power - 1))
        return True

    def _times(self, unit: Unit, power: int) -> None:
        for name, count in unit.dimensions:
            self.powers[name] = self.powers.get(name, 0) + count * power
        self.size *= unit.size**power
