"""Plain data across a pipe: frames of JSON that decode to exact builtin types and a few of the standard library's,
nothing else.

Both sides use the same code. Soundness rests on `decode` and `read_frame` of the side that is trusted: whatever bytes
arrive, they give plain values or raise BadFrame.
"""

from __future__ import annotations

import importlib
import json
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_REPLY_BYTES = 16 << 20
MAX_REQUEST_BYTES = 256 << 20
MAX_ITERATOR_ITEMS = 100_000
_HEADER = struct.Struct("<I")
_SMALL_INT = 1 << 53


class BadFrame(Exception):
    """The other side sent something that is no frame or no plain data."""


class FrameTooLong(BadFrame):
    """More bytes than this kind of frame may have."""


class NotPlain(TypeError):
    """A value that cannot cross."""


def write_frame(descriptor: int, message: Any, limit: int = MAX_REPLY_BYTES) -> None:
    body = json.dumps(message).encode()
    if len(body) > limit:
        raise FrameTooLong(f"{len(body)} bytes")
    view = memoryview(_HEADER.pack(len(body)) + body)
    while view:
        view = view[os.write(descriptor, view) :]


def read_frame(descriptor: int, limit: int = MAX_REPLY_BYTES) -> Any:
    """The next message; EOFError when the other side is gone."""
    (size,) = _HEADER.unpack(_read_exactly(descriptor, _HEADER.size))
    if size > limit:
        raise FrameTooLong(f"{size} bytes")
    try:
        return json.loads(_read_exactly(descriptor, size))
    except (ValueError, RecursionError) as error:
        raise BadFrame(str(error)) from None


def _read_exactly(descriptor: int, size: int) -> bytes:
    pieces = []
    while size:
        piece = os.read(descriptor, min(size, 1 << 20))
        if not piece:
            raise EOFError
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _pairs(value: dict[Any, Any]) -> list[Any]:
    return [[encode(key), encode(item)] for key, item in value.items()]


def _items(value: Any) -> list[Any]:
    return [encode(item) for item in value]


def _decoded(value: Any) -> Iterator[Any]:
    return map(decode, _is(value, list))


def _is(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise BadFrame(f"{kind.__name__} expected")
    return value


_TO: list[tuple[type, str, Callable[[Any], Any]]] = [
    (tuple, "tuple", _items),
    (set, "set", _items),
    (frozenset, "frozenset", _items),
    (dict, "dict", _pairs),
    (bytes, "bytes", bytes.hex),
    (bytearray, "bytearray", bytearray.hex),
    (complex, "complex", lambda value: [value.real, value.imag]),
    (deque, "deque", _items),
    (range, "range", lambda value: _items((value.start, value.stop, value.step))),
    (Iterator, "iterator", lambda value: _items(islice(value, MAX_ITERATOR_ITEMS))),
]
_TO_FROM_LIBRARY: dict[str, Callable[[Any], Any]] = {
    "decimal.Decimal": str,
    "fractions.Fraction": lambda value: _items((value.numerator, value.denominator)),
    "datetime.datetime": lambda value: value.isoformat(),
    "datetime.date": lambda value: value.isoformat(),
    "datetime.time": lambda value: value.isoformat(),
    "datetime.timedelta": lambda value: [value.days, value.seconds, value.microseconds],
}


def _library(name: str) -> Any:
    """A class of the standard library; imported when first needed, because most programs never do."""
    module, _, kind = name.partition(".")
    return getattr(importlib.import_module(module), kind)


_FROM: dict[str, Callable[[Any], Any]] = {
    "int": lambda value: int(_is(value, str), 16),
    "tuple": lambda value: tuple(_decoded(value)),
    "set": lambda value: set(_decoded(value)),
    "frozenset": lambda value: frozenset(_decoded(value)),
    "dict": lambda value: {decode(key): decode(item) for key, item in _is(value, list)},
    "bytes": lambda value: bytes.fromhex(_is(value, str)),
    "bytearray": lambda value: bytearray.fromhex(_is(value, str)),
    "complex": lambda value: complex(*(float(part) for part in _is(value, list))),
    "deque": lambda value: deque(_decoded(value)),
    "range": lambda value: range(*(_is(part, int) for part in _decoded(value))),
    "iterator": lambda value: iter(list(_decoded(value))),
    "decimal.Decimal": lambda value: _library("decimal.Decimal")(_is(value, str)),
    "fractions.Fraction": lambda value: _library("fractions.Fraction")(*(_is(part, int) for part in _decoded(value))),
    "datetime.datetime": lambda value: _library("datetime.datetime").fromisoformat(_is(value, str)),
    "datetime.date": lambda value: _library("datetime.date").fromisoformat(_is(value, str)),
    "datetime.time": lambda value: _library("datetime.time").fromisoformat(_is(value, str)),
    "datetime.timedelta": lambda value: _library("datetime.timedelta")(*(_is(part, int) for part in _is(value, list))),
}


def encode(value: Any) -> Any:
    """`value` as JSON. Subclasses become their base, numpy's scalars and arrays numbers and lists. NotPlain for all
    else."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        return number if -_SMALL_INT < number < _SMALL_INT else {"int": hex(number)}
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, list):
        return [encode(item) for item in list.__iter__(value)]
    for kind, tag, convert in _TO:
        if isinstance(value, kind):
            return {tag: convert(value)}
    if (name := f"{type(value).__module__}.{type(value).__qualname__}") in _TO_FROM_LIBRARY:
        return {name: _TO_FROM_LIBRARY[name](value)}
    if type(value).__module__ == "numpy":
        return encode(value.tolist())
    raise NotPlain(f"{type(value).__name__} is no plain data")


def decode(message: Any) -> Any:
    """The value that `encode` was given, built of exact types. BadFrame for anything else."""
    if isinstance(message, list):
        return [decode(item) for item in message]
    if not isinstance(message, dict):
        return message
    if len(message) != 1:
        raise BadFrame("one tag expected")
    ((tag, content),) = message.items()
    if tag not in _FROM:
        raise BadFrame(f"unknown tag {tag[:20]!r}")
    try:
        return _FROM[tag](content)
    except (BadFrame, RecursionError, MemoryError):
        raise
    except Exception as error:
        raise BadFrame(f"{tag}: {error}") from None
