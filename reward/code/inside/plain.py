"""Plain data across a pipe: bytes that become values of exact builtin types and a few of the standard library's, no
others.

Both sides use the same code. Soundness rests on `loads` and `read_frame` of the side that is trusted: whatever bytes
arrive, they give plain values or raise BadFrame. (pickle and marshal are not safe, and json takes longer to import than
all else.)
"""

from __future__ import annotations

import os
from _collections import deque
from itertools import islice
from struct import pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_REPLY_BYTES = 16 << 20
MAX_REQUEST_BYTES = 256 << 20
MAX_ITERATOR_ITEMS = 100_000


class BadFrame(Exception):
    """The other side sent something that is no frame or no plain data."""


class FrameTooLong(BadFrame):
    """More bytes than this kind of frame may have."""


class NotPlain(TypeError):
    """A value that cannot cross."""


def write_frame(descriptor: int, message: Any, limit: int = MAX_REPLY_BYTES) -> None:
    body = dumps(message)
    if len(body) > limit:
        raise FrameTooLong(f"{len(body)} bytes")
    view = memoryview(len(body).to_bytes(4, "little") + body)
    while view:
        view = view[os.write(descriptor, view) :]


def read_frame(descriptor: int, limit: int = MAX_REPLY_BYTES) -> Any:
    """The next message; EOFError when the other side is gone."""
    size = int.from_bytes(_read_exactly(descriptor, 4), "little")
    if size > limit:
        raise FrameTooLong(f"{size} bytes")
    return loads(_read_exactly(descriptor, size))


def _read_exactly(descriptor: int, size: int) -> bytes:
    pieces = []
    while size:
        piece = os.read(descriptor, min(size, 1 << 20))
        if not piece:
            raise EOFError
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def frames(output: bytes) -> list[Any]:
    """The messages in `output`, up to the first that is none."""
    messages, position = [], 0
    while position + 4 <= len(output):
        end = position + 4 + int.from_bytes(output[position : position + 4], "little")
        try:
            messages.append(loads(output[position + 4 : end]))
        except (BadFrame, RecursionError):
            break
        position = end
    return messages


_CONTAINERS: tuple[tuple[bytes, Any], ...] = (
    (b"l", list),
    (b"t", tuple),
    (b"S", set),
    (b"Z", frozenset),
    (b"q", deque),
)
_MAKE: dict[bytes, Callable[[Any], Any]] = {**dict(_CONTAINERS), b"I": iter}
_FROM_LIBRARY: dict[str, Callable[[Any, Any], Any]] = {
    "decimal.Decimal": lambda kind, text: kind(text),
    "fractions.Fraction": lambda kind, parts: kind(*parts),
    "datetime.datetime": lambda kind, text: kind.fromisoformat(text),
    "datetime.date": lambda kind, text: kind.fromisoformat(text),
    "datetime.time": lambda kind, text: kind.fromisoformat(text),
    "datetime.timedelta": lambda kind, parts: kind(*parts),
}
_TO_PLAIN: dict[str, Callable[[Any], Any]] = {
    "decimal.Decimal": str,
    "fractions.Fraction": lambda value: (value.numerator, value.denominator),
    "datetime.timedelta": lambda value: (value.days, value.seconds, value.microseconds),
}


def dumps(value: Any) -> bytes:
    """`value` as bytes. Subclasses become their base, numpy's scalars and arrays numbers and lists. NotPlain for all
    else."""
    parts: list[bytes] = []
    _write(value, parts.append)
    return b"".join(parts)


def _write(value: Any, put: Callable[[bytes], None]) -> None:
    if value is None or value is True or value is False:
        put({None: b"N", True: b"T", False: b"F"}[value])
    elif isinstance(value, str):
        _put_bytes(b"s", str.encode(value, "utf-8", "surrogatepass"), put)
    elif isinstance(value, int):
        number = int.__int__(value)
        _put_bytes(b"i", number.to_bytes((number.bit_length() + 8) // 8, "little", signed=True), put)
    elif isinstance(value, float):
        put(b"f" + pack("<d", float.__float__(value)))
    elif isinstance(value, dict):
        put(b"d" + len(value).to_bytes(4, "little"))
        for key, item in dict.items(value):
            _write(key, put)
            _write(item, put)
    elif isinstance(value, bytes | bytearray):
        _put_bytes(b"b" if isinstance(value, bytes) else b"B", bytes(value), put)
    else:
        _write_rarer(value, put)


def _write_rarer(value: Any, put: Callable[[bytes], None]) -> None:
    for tag, kind in _CONTAINERS:
        if isinstance(value, kind):
            return _put_items(tag, list(value), put)
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, complex):
        put(b"c" + pack("<dd", value.real, value.imag))
    elif isinstance(value, range):
        _put_items(b"r", [value.start, value.stop, value.step], put)
    elif hasattr(type(value), "__next__"):
        _put_items(b"I", list(islice(value, MAX_ITERATOR_ITEMS)), put)
    elif name in _FROM_LIBRARY:
        plain = _TO_PLAIN[name](value) if name in _TO_PLAIN else value.isoformat()
        _put_items(b"L", [name, plain], put)
    elif type(value).__module__ == "numpy":
        _write(value.tolist(), put)
    else:
        raise NotPlain(f"{type(value).__name__} is no plain data")


def _put_bytes(tag: bytes, body: bytes, put: Callable[[bytes], None]) -> None:
    put(tag + len(body).to_bytes(4, "little"))
    put(body)


def _put_items(tag: bytes, items: list[Any], put: Callable[[bytes], None]) -> None:
    put(tag + len(items).to_bytes(4, "little"))
    for item in items:
        _write(item, put)


def loads(data: bytes) -> Any:
    """The value that `dumps` was given, built of exact types. BadFrame for anything else."""
    reader = _Reader(data)
    try:
        value = reader.value()
    except (BadFrame, RecursionError, MemoryError):
        raise
    except Exception as error:
        raise BadFrame(f"{type(error).__name__}: {error}") from None
    if reader.position != len(data):
        raise BadFrame("bytes left over")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        piece = self.data[self.position : self.position + size]
        if len(piece) < size:
            raise BadFrame("cut short")
        self.position += size
        return piece

    def count(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def items(self) -> list[Any]:
        return [self.value() for _ in range(self.count())]

    def value(self) -> Any:
        tag = self.take(1)
        if tag == b"s":
            return self.take(self.count()).decode("utf-8", "surrogatepass")
        if tag == b"i":
            return int.from_bytes(self.take(self.count()), "little", signed=True)
        if tag in _MAKE:
            return _MAKE[tag](self.items())
        if tag == b"d":
            return {self.value(): self.value() for _ in range(self.count())}
        return self.rarer(tag)

    def rarer(self, tag: bytes) -> Any:
        if tag in b"NTF":
            return {b"N": None, b"T": True, b"F": False}[tag]
        if tag == b"f":
            return unpack("<d", self.take(8))[0]
        if tag in b"bB":
            body = self.take(self.count())
            return body if tag == b"b" else bytearray(body)
        if tag == b"c":
            return complex(*unpack("<dd", self.take(16)))
        if tag == b"r":
            return range(*map(int, self.items()))
        if tag == b"L":
            name, plain = self.items()
            module, _, kind = name.partition(".")
            make = _FROM_LIBRARY[name]
            return make(getattr(__import__(module), kind), plain)
        raise BadFrame(f"unknown tag {tag!r}")
