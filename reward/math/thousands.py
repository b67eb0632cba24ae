"""Commas of thousands in numbers and lists of numbers."""

import re

_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?!\d|,\d)")
_ZERO_GROUP = re.compile(r"(?<![\d.])(?:[1-9]\d?(?:,\d{3})*,0\d{2}|[1-9]\d{2}(?:,\d{3})*,000)(?:,\d{3})*(?!\d|,\d{3})")
_SHORT_GROUP = re.compile(r"(?<![\d.])[1-9]\d?(?:,\d{3})+(?!\d|,\d{3})")
_ONLY_NUMBERS = re.compile(r"(?<!\d)(?<!\d )[+-]|[\d,.\s()\[\]]|\\[{}]")


def surely_joined(text: str) -> str:
    """Without the commas of thousands where a group with a zero in front shows them (no list holds a 000); then other
    numbers beside it have them too."""
    joined = _ZERO_GROUP.sub(_joined, text)
    return text if joined == text else _SHORT_GROUP.sub(_joined, joined)


def _joined(match: re.Match[str]) -> str:
    return match[0].replace(",", "")


def without_commas(text: str) -> str:
    """Without the commas of thousands, where they can be nothing else: in one number, inside an expression, or in a
    list whose commas have spaces."""
    alone = re.fullmatch(r"[-+]?[\d,.]+", text) is not None
    if not _THOUSANDS.search(text) or not (alone or ", " in text or _ONLY_NUMBERS.sub("", text)):
        return text
    return _THOUSANDS.sub(_joined, text)
