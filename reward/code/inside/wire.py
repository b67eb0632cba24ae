"""Values as bytes: exact builtin types, a few of the standard library's (kinds), what the two sides of a link agree on
(records, objects by value), and nothing else.

Both sides use the same code. Soundness rests on the Reader of the side that is trusted: whatever bytes arrive, it
gives plain values or raises BadFrame, in time and memory linear in the bytes. (pickle and marshal are not safe, and
json takes longer to import than all else.)
"""

from __future__ import annotations

import sys
from _collections import deque

from reward.code.inside.kinds import build, fill, new, reduce

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

MAX_DEPTH = 10_000
MAX_WEIGHT = 1_000_000  # of what a frame holds besides lists, tuples, dicts, sets, texts and numbers
_HEAVY = "qOHP"  # these take up to a kilobyte of memory for a few bytes of the frame
PLAIN_TYPES = (int, str, float, list, dict, tuple, set, frozenset, bytes, bytearray, complex, deque)


class BadFrame(Exception):
    """The other side sent something that is no frame or no plain data."""


class FrameTooLong(BadFrame):
    """More bytes than this kind of frame may have."""


class NotPlain(TypeError):
    """A value that cannot cross."""


class Hooks:
    """What crosses besides plain data; here nothing."""

    def reduce(self, value: Any) -> tuple[Any, ...]:
        """(tag, items) for a record, ("O", name, items) for an object by value, ("", value) for a value to be written
        in place of this one. NotPlain for what cannot cross."""
        if (known := reduce(value)) is not None:
            return known
        if (base := plain_base(type(value))) is not None:
            return "", as_base(value, base)
        raise NotPlain(f"{type(value).__name__} is no plain data")

    def record(self, tag: str, items: list[Any]) -> Any:
        """The value of a record."""
        if tag == "L":
            return build(*items)
        raise BadFrame(f"unknown tag {tag!r}")

    def new(self, name: str) -> Any:
        """An object that crosses by value, still empty."""
        return new(name)

    def fill(self, made: Any, items: list[Any]) -> None:
        fill(made, items)


_PLAIN = Hooks()


def plain_base(kind: type) -> Any:
    """The plain type that a class derives from, or None."""
    return next((base for base in PLAIN_TYPES if issubclass(kind, base)), None)


def as_base(value: Any, base: Any) -> Any:
    """`value`, of a subclass of `base`, as an exact `base`, whatever the subclass does."""
    if base in (int, str, float):
        return getattr(base, f"__{base.__name__}__")(value)
    if base is dict:
        return dict(dict.items(value))
    if base is complex:
        return complex.__pos__(value)
    if base in (bytes, bytearray):
        return base.__getitem__(value, slice(None))
    return base(base.__iter__(value))


def _text(value: str) -> bytes:
    body = value.encode("utf-8", "surrogatepass")
    return b"s" + len(body).to_bytes(4, "little") + body


def _integer(value: int) -> bytes:
    size = (value.bit_length() + 8) // 8
    return b"i" + size.to_bytes(4, "little") + value.to_bytes(size, "little", signed=True)


def flat(value: dict[Any, Any]) -> list[Any]:
    """The keys and values of a dict, in turn."""
    return [part for pair in value.items() for part in pair]


def _struct() -> Any:
    """Many a program has no floats, and the import takes a while."""
    return sys.modules.get("_struct") or __import__("_struct")


_SCALARS: dict[type, Callable[[Any], bytes]] = {
    int: _integer,
    str: _text,
    bool: lambda value: b"T" if value else b"F",
    type(None): lambda value: b"N",
    float: lambda value: b"f" + _struct().pack("<d", value),
    complex: lambda value: b"c" + _struct().pack("<dd", value.real, value.imag),
    bytes: lambda value: b"b" + len(value).to_bytes(4, "little") + value,
}
_CONTAINERS: dict[type, tuple[bytes, Callable[[Any], list[Any]]]] = {
    list: (b"l", list),
    tuple: (b"t", list),
    dict: (b"d", flat),
    set: (b"S", list),
    frozenset: (b"Z", list),
    range: (b"r", lambda value: [value.start, value.stop, value.step]),
    bytearray: (b"B", lambda value: [bytes(value)]),
}
MUTABLE = (list, dict, set, deque, bytearray)


def reference(tag: str, number: int) -> bytes:
    """R: to an object of the same message, A: of the request that it answers, K: that both sides keep."""
    return tag.encode() + number.to_bytes(4, "little")


class Writer:
    """Writes one value. Mutable containers are numbered in the order in which they open: what occurs twice is written
    once. `known`: how objects are written that the reader has already, by identity (`reference`)."""

    def __init__(self, hooks: Hooks = _PLAIN, known: dict[int, bytes] | None = None) -> None:
        self.numbered: list[Any] = []
        self._hooks, self._known = hooks, known or {}
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []  # what `reduce` made: its identity must stay its own

    def dumps(self, value: Any, limit: int) -> bytes:
        """NotPlain for a value that cannot cross, FrameTooLong for too long a one."""
        parts: list[bytes] = []
        stack = [iter((value,))]
        while stack:
            for item in stack[-1]:
                scalar = _SCALARS.get(type(item))
                if scalar is not None:
                    parts.append(scalar(item))
                    continue
                header, items = self._open(item)
                parts.append(header)
                if items:
                    stack.append(iter(items))
                    break
            else:
                stack.pop()
            if len(parts) > limit:
                raise FrameTooLong(f"more than {limit} values")
            if len(stack) > MAX_DEPTH:
                raise NotPlain(f"nested more than {MAX_DEPTH} deep")
        body = b"".join(parts)
        if len(body) > limit:
            raise FrameTooLong(f"{len(body)} bytes")
        return body

    def _open(self, value: Any) -> tuple[bytes, list[Any]]:
        if (written := self._known.get(id(value))) is not None:
            return written, []
        if (number := self._numbers.get(id(value))) is not None:
            return reference("R", number), []
        if (container := _CONTAINERS.get(type(value))) is not None:
            tag, items = container[0], container[1](value)
            if type(value) in MUTABLE:
                self._number(value)
        elif type(value) is deque and value.maxlen is None:
            tag, items = b"q", list(value)
            self._number(value)
        else:
            return self._reduced(value)
        return tag + len(items).to_bytes(4, "little"), items

    def _reduced(self, value: Any) -> tuple[bytes, list[Any]]:
        tag, *rest = self._hooks.reduce(value)
        self._kept.append(rest)
        if not tag:
            return b"", rest
        if tag != "O":
            return tag.encode() + len(rest[0]).to_bytes(4, "little"), rest[0]
        self._number(value)
        return b"O" + _text(rest[0])[1:] + len(rest[1]).to_bytes(4, "little"), rest[1]

    def _number(self, value: Any) -> None:
        self._numbers[id(value)] = len(self.numbered)
        self.numbered.append(value)


class _Open:
    """A container whose items are still being read."""

    __slots__ = ("tag", "made", "items", "wanted", "number")

    def __init__(self, tag: str, made: Any, wanted: int, number: int) -> None:
        self.tag, self.made, self.wanted, self.number = tag, made, wanted, number
        self.items: list[Any] = []


class Reader:
    """Reads one value. `numbered` and `items`: the mutable containers in the order of their numbers, and what each
    held. `known` and `kept`: the objects of a request, and those that both sides keep, for the writer to refer to."""

    def __init__(self, data: bytes, hooks: Hooks = _PLAIN, known: Sequence[Any] = (), kept: Sequence[Any] = ()) -> None:
        self.data, self.position = data, 0
        self.numbered: list[Any] = []
        self.items: list[list[Any]] = []
        self._hooks, self._known, self._kept, self._weight = hooks, known, kept, 0

    def loads(self) -> Any:
        """The value that was written. BadFrame for anything else."""
        try:
            value = self._value()
        except (BadFrame, RecursionError, MemoryError):
            raise
        except Exception as error:
            raise BadFrame(f"{type(error).__name__}: {error}") from None
        if self.position != len(self.data):
            raise BadFrame("bytes left over")
        return value

    def _value(self) -> Any:
        stack: list[_Open] = []
        while True:
            tag = self.take(1)
            scalar = READ.get(tag)
            if scalar is not None:
                value = scalar(self)
            else:
                container = self._open(tag.decode("ascii"))
                stack.append(container)
                if len(stack) > MAX_DEPTH + 9:
                    raise BadFrame(f"nested more than {MAX_DEPTH} deep")
                if container.wanted:
                    continue
                value = self._close(stack.pop())
            while stack:
                container = stack[-1]
                container.items.append(value)
                if len(container.items) < container.wanted:
                    break
                value = self._close(stack.pop())
            if not stack:
                return value

    def _open(self, tag: str) -> _Open:
        made, number = None, -1
        if tag == "O":
            made = self._hooks.new(self.take(self.count()).decode())
        elif tag in _NEW:
            made = _NEW[tag]()
        if made is not None:
            number = len(self.numbered)
            self.numbered.append(made)
            self.items.append([])
        self._weight += 10 if tag in _HEAVY else tag not in _COMMON
        wanted = self.count()
        if wanted > len(self.data) - self.position:
            raise BadFrame("cut short")
        if self._weight > MAX_WEIGHT:
            raise BadFrame("too many objects")
        return _Open(tag, made, wanted, number)

    def _close(self, container: _Open) -> Any:
        tag, made, items = container.tag, container.made, container.items
        if container.number >= 0:
            self.items[container.number] = items
        if tag in _FILL:
            _FILL[tag](made, items)
            return made
        if tag == "O":
            self._hooks.fill(made, items)
            return made
        if tag in _MAKE:
            return _MAKE[tag](items)
        return self._hooks.record(tag, items)

    def take(self, size: int) -> bytes:
        piece = self.data[self.position : self.position + size]
        if len(piece) < size:
            raise BadFrame("cut short")
        self.position += size
        return piece

    def count(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def unpack(self, form: str, size: int) -> tuple[Any, ...]:
        self.position += size
        if self.position > len(self.data):
            raise BadFrame("cut short")
        return _struct().unpack_from(form, self.data, self.position - size)


READ: dict[bytes, Callable[[Reader], Any]] = {
    b"i": lambda reader: int.from_bytes(reader.take(reader.count()), "little", signed=True),
    b"s": lambda reader: reader.take(reader.count()).decode("utf-8", "surrogatepass"),
    b"T": lambda reader: True,
    b"F": lambda reader: False,
    b"N": lambda reader: None,
    b"f": lambda reader: reader.unpack("<d", 8)[0],
    b"c": lambda reader: complex(*reader.unpack("<dd", 16)),
    b"b": lambda reader: reader.take(reader.count()),
    b"R": lambda reader: reader.numbered[reader.count()],
    b"A": lambda reader: reader._known[reader.count()],
    b"K": lambda reader: reader._kept[reader.count()],
}
_NEW: dict[str, Callable[[], Any]] = {"l": list, "d": dict, "S": set, "q": deque, "B": bytearray}
_COMMON = "ltdSZ"
_FILL: dict[str, Callable[[Any, list[Any]], None]] = {
    "l": list.extend,
    "q": deque.extend,
    "d": lambda made, items: made.update(zip(spread(items[::2]), items[1::2], strict=True)),
    "S": lambda made, items: made.update(spread(items)),
    "B": lambda made, items: made.extend(bytes(*items)) if type(items[0]) is bytes else _refuse("bytearray"),
}
_MAKE: dict[str, Callable[[list[Any]], Any]] = {
    "t": tuple,
    "Z": lambda items: frozenset(spread(items)),
    "r": lambda items: range(*map(int, items)),
}


def _refuse(name: str) -> None:
    raise BadFrame(name)


def spread(keys: list[Any]) -> list[Any]:
    """The keys of a set or dict. BadFrame where so many of them share a hash that a set of them takes quadratic
    time."""
    if len(keys) > 1000 and len({hash(key) for key in keys}) < len(keys) // 2:
        raise BadFrame("keys that collide")
    return keys
