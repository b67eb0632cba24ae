"""The program's side of a link: which of the program's values cross as data, and the objects that stay here.

Nothing here is trusted: all that leaves is data, and data is all that the other side accepts.
"""

from __future__ import annotations

from reward.code.inside import kinds
from reward.code.inside.errors import build_error, known_error, reduce_error
from reward.code.inside.link import ANSWER, Link, Side
from reward.code.inside.shared import (
    BASE,
    CLASS,
    FORWARDED,
    IDENTITY,
    LAZY,
    fields,
    found,
    is_enum,
    is_named_tuple,
    set_fields,
    tuple_class,
)
from reward.code.inside.wire import as_base, flat, plain_base
from reward.code.inside.world import ProgramsWorld

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_MADE_UP = {"__getattr__", "__getattribute__", "__missing__"}  # attributes and items that no plain value has
_CHANGING_BASES = "list", "dict", "set", "bytearray", "deque"


class Kept:
    """A result that the tests use as an object: of a class of the program it crosses as one, even if it is plain."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Objects(Side):
    """Numbers what stays here, and stands in for what stays on the tests' side."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.link: Link
        self.known_classes: set[str] = set()  # of which the tests have one of the same name
        self._objects: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._theirs: dict[int, Any] = {}
        self._their_numbers: dict[int, int] = {}
        self._flags: dict[type, str] = {}
        self._records: dict[str, type] = {}
        self._world = ProgramsWorld()

    def reduce(self, value: Any) -> tuple[Any, ...]:
        if (number := self._their_numbers.get(id(value))) is not None:
            return "G", [number]
        if type(value) is Kept:
            value = value.value
            base = plain_base(type(value))
            is_kept = base is not None and type(value).__module__ == self.module.__name__
            return self._handle(value, BASE) if is_kept and _overrides(type(value), base) else ("", value)
        if (known := kinds.reduce(value)) is not None:
            return known
        if isinstance(value, BaseException):
            return "E", reduce_error(value, lambda part: True)
        if type(value).__qualname__ in self.known_classes and (by_value := self._by_value(value)):
            return by_value
        base = plain_base(type(value))
        return self._handle(value) if base is None else self._derived(value, base)

    def _by_value(self, value: Any) -> tuple[Any, ...] | None:
        name = type(value).__qualname__
        if is_enum(value):
            return "m", [name, value.name]
        if plain_base(type(value)) is None:
            return "O", "=" + name, flat(fields(value))
        return None

    def _derived(self, value: Any, base: type) -> tuple[Any, ...]:
        """A value of a class that derives from a plain type: as plain as it can be."""
        kind = type(value)
        more = (
            _public(kind, base)
            | _names(kind, base) & _MADE_UP
            | {name for name in getattr(value, "__dict__", ()) if name[:1] != "_"}
        )
        if is_named_tuple(value) and not more:
            return "n", [kind.__name__, list(kind._fields), *value]
        if not more:
            return "", as_base(value, base)
        if base.__name__ in _CHANGING_BASES:
            return self._handle(value, BASE)
        return "P", [self.number(value), kind.__name__, as_base(value, base)]

    def _handle(self, value: Any, *more: str) -> tuple[Any, ...]:
        kind = type(value)
        if kind not in self._flags:
            defined = {name: found for above in reversed(kind.__mro__) for name, found in vars(above).items()}
            names = [name for name in FORWARDED if defined.get(name) is not None]
            if kind.__eq__ is object.__eq__:
                names.append(IDENTITY)
            if issubclass(kind, type):
                names.append(CLASS)
            self._flags[kind] = " ".join(names)
        lazy = LAZY.get(kind)
        if lazy is None and kind.__module__ in ("builtins", "itertools") and hasattr(kind, "__next__"):
            lazy = "iterator"
        return "H", [self.number(value), lazy or "object", kind.__name__, " ".join((self._flags[kind], *more))]

    def number(self, value: Any) -> int:
        """The number of an object that stays here, from now on."""
        number = self._numbers.get(id(value))
        if number is None:
            number = self._numbers[id(value)] = len(self._objects)
            self._objects[number] = value
        return number

    def record(self, tag: str, items: list[Any]) -> Any:
        """What the tests' side sends besides plain data."""
        if tag == "G":
            own = self._objects[items[0]]
            return own if len(items) == 1 else getattr(own, items[1])
        if tag == "H":
            return self._stand_in(*items)
        if tag == "E":
            error = build_error(self._error_class, *items[:4])
            self._remember(items[4], error)
            return error
        if tag == "I":
            return found(kinds.import_name(items[0]), items[1])
        if tag == "m":
            kind = self.class_of(items[0])
            return kind[items[1]] if kind is not None else items[2]  # type: ignore[index]
        if tag == "n":
            return tuple_class(items[0], items[1], self.module)._make(items[2:])
        return super().record(tag, items)

    def class_of(self, name: str) -> type | None:
        own = found(self.module, name)
        return own if isinstance(own, type) else None

    def _error_class(self, name: str) -> type[BaseException] | None:
        own = self.class_of(name.partition(":")[2]) if name.startswith("tests:") else None
        return own if own is not None and issubclass(own, BaseException) else known_error(name)

    def _remember(self, number: int, value: Any) -> Any:
        """Something of the tests' side has a stand-in here: it goes back as itself."""
        self._theirs[number] = value
        self._their_numbers[id(value)] = number
        return value

    def _stand_in(self, number: int, lazy: str, name: str, document: str | None) -> Any:
        if number not in self._theirs:
            made: Any = self._iterator(number) if lazy == "iterator" else self._function(number)
            if lazy != "iterator":
                made.__name__ = made.__qualname__ = name
                made.__doc__ = document
            self._remember(number, made)
        return self._theirs[number]

    def _function(self, number: int) -> Callable[..., Any]:
        def function(*args: Any, **kwargs: Any) -> Any:
            return self.ask("call", number, args, kwargs)

        return function

    def _iterator(self, number: int) -> Iterator[Any]:
        while True:
            items, is_done = self.ask("next", number)
            if is_done:
                return
            yield from items

    def ask(self, operation: str, *arguments: Any) -> Any:
        """Has the tests' side do something, while it waits for an answer."""
        with self.link.lock:
            if not self.link.served:
                raise RuntimeError("no test is waiting")
            kind, content = self.link.ask(operation, *arguments)
        if kind == ANSWER:
            return content
        raise content

    def news(self) -> Any:
        return self._world.news()

    def hear(self, news: Any) -> None:
        self._world.hear(news)
        for number in (news or {}).get("closed", ()):
            self._objects[number].close()

    def new(self, name: str) -> Any:
        if name[:1] != "=":
            return super().new(name)
        kind = self.class_of(name[1:]) or self._records.setdefault(name, type(name[1:].rpartition(".")[2], (), {}))
        return object.__new__(kind)

    def fill(self, made: Any, items: list[Any]) -> None:
        if kinds.is_changing(made):
            super().fill(made, items)
        else:
            set_fields(made, dict(zip(items[::2], items[1::2], strict=True)))

    def state(self, value: Any) -> list[Any]:
        return flat(fields(value))


def _names(kind: type, base: type) -> set[str]:
    """What a class defines beyond the plain type that it derives from."""
    return {name for above in kind.__mro__[: kind.__mro__.index(base)] for name in vars(above)}


def _public(kind: type, base: type) -> set[str]:
    return {name for name in _names(kind, base) if name[:1] != "_"} - set(getattr(kind, "_fields", ()))


def _overrides(kind: type, base: type) -> bool:
    """Whether a class does more than hold a plain value: whether it has attributes, or operations of its own."""
    return bool(_public(kind, base) or _names(kind, base) & (FORWARDED | _MADE_UP) - {"__str__", "__repr__"})
