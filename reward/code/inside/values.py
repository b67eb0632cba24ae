"""The tests' side of a link: which of the tests' values cross to the program, and what the program's become here."""

from __future__ import annotations

import sys

from reward.code.inside import kinds
from reward.code.inside.asking import Asker
from reward.code.inside.errors import build_error, known_error, reduce_error
from reward.code.inside.handles import Method, Remote, handle_class
from reward.code.inside.lazy import MAKE, Target
from reward.code.inside.shared import fields, found, is_enum, is_named_tuple, set_fields, tuple_class
from reward.code.inside.wire import BadFrame, FrameTooLong, NotPlain, as_base, flat, plain_base

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SCALARS = (int, float, str, bool, bytes, type(None))
_TOO_LONG = f"{FrameTooLong.__module__}:{FrameTooLong.__name__}"  # a result that the program's side could not send
_FIXED_BASES = (int, float, complex, str, bytes, tuple, frozenset)


class Missing:
    """In place of a name that the program does not define: using it is an error of the program."""

    def __init__(self, side: Asker, name: str) -> None:
        self._side, self._name = side, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._side.ask("missing", self._name)

    def __getattr__(self, name: str) -> Any:
        return self._side.ask("missing", self._name)


class Values(Asker):
    """Numbers what stays here, and makes handles on what stays on the program's side. takes_arrays: the tests take
    numpy's arrays for arrays, not for lists."""

    def __init__(self, takes_arrays: bool) -> None:
        self._takes_arrays = takes_arrays
        self._own: list[Any] = []
        self._own_numbers: dict[int, int] = {}
        self._made: dict[int, Any] = {}  # by the program's numbers
        self._numbers: dict[int, int] = {}  # of what was made, by identity
        self._errors: dict[str, type[Exception]] = {}
        self._plain_classes: dict[tuple[str, type], Any] = {}
        self._defined: set[str] = set()  # classes that the program has too
        self._shapes: dict[int, list[int]] = {}

    def _error_class(self, name: str) -> type[BaseException] | None:
        if (known := self._errors.get(name) or known_error(name)) is not None:
            return known
        if name == _TOO_LONG:
            return FrameTooLong
        module, _, path = name.partition(":")
        own = self._class(path) if module == "program" else None
        return own if own is not None and issubclass(own, Exception) else None

    def _class(self, path: str) -> type | None:
        """A class that the prefix or the tests define."""
        own = found(sys.modules["tests"], path)
        return own if isinstance(own, type) and own.__module__ == "tests" else None

    def reduce(self, value: Any) -> tuple[Any, ...]:
        kind = type(value)
        if (number := self._numbers.get(id(value))) is not None:
            return "G", [number]
        if kind is Target:
            return "G", [value.number]
        if kind is Method:
            return "G", [self._numbers[id(value.owner)], value.name]
        if kind is Missing:
            value()
        if (known := kinds.reduce(value)) is not None:
            return known
        if isinstance(value, BaseException):
            parts = reduce_error(value, lambda part: type(part) in _SCALARS)
            return "E", [*parts, self._export(value)]
        if is_named_tuple(value):
            return "n", [kind.__name__, list(kind._fields), *value]
        if kind.__module__ == "tests" and is_enum(value):
            return "m", [kind.__qualname__, value.name, value.value if type(value.value) in _SCALARS else None]
        if (base := plain_base(kind)) is not None:
            return "", as_base(value, base)
        return self._reduce_object(value, kind)

    def _reduce_object(self, value: Any, kind: Any) -> tuple[Any, ...]:
        """An object by value where the program has its class or needs none; functions and iterators as ways back to
        here."""
        is_own = kind.__module__ == "tests"
        if is_own and kind.__qualname__ in self._defined:
            return "O", "=" + kind.__qualname__, flat(fields(value))
        if callable(value):
            if path := _library_path(value):
                return "I", path
            if isinstance(value, type) and value.__qualname__ in self._defined and self._class(value.__qualname__):
                return "I", ["program", value.__qualname__]
            name, document = getattr(value, "__name__", "function"), getattr(value, "__doc__", None)
            return "H", [self._export(value), "function", str(name), document if type(document) is str else None]
        if hasattr(kind, "__next__"):
            return "H", [self._export(value), "iterator", kind.__name__, None]
        methods = [name for name in dir(kind) if name[:1] != "_" and callable(getattr(kind, name))]
        held = fields(value)
        of_class = [name for name in dir(kind) if name[:1] != "_" and name not in held]  # which would not cross
        if is_own and not methods and not of_class:
            return "O", "=" + kind.__qualname__, flat(held)
        raise NotPlain(f"{kind.__name__}, which is no plain data")

    def _export(self, value: Any) -> int:
        """The number of something of the tests that the program refers back to."""
        number = self._own_numbers.get(id(value))
        if number is None:
            number = self._own_numbers[id(value)] = len(self._own)
            self._own.append(value)
        return number

    def record(self, tag: str, items: list[Any]) -> Any:
        if tag == "H":
            return self._handle(*items)
        if tag == "P":
            return self._with_attributes(*items)
        if tag == "G":
            (number,) = items
            return self._own[natural(number)]
        if tag == "E":
            return build_error(self._error_class, *items)
        if tag == "n":
            return tuple_class(items[0], items[1], sys.modules["tests"])._make(items[2:])
        if tag == "m":
            kind = self._class(items[0])
            if kind is None or not is_enum(member := kind[items[1]]):  # type: ignore[index]
                raise BadFrame("no member")
            return member
        if tag == "L" and items[0] == "numpy" and not self._takes_arrays and type(items[2]) in (*_SCALARS, complex):
            return items[2]
        return super().record(tag, items)

    def _handle(self, number: int, lazy: str, name: str, flags: str) -> Any:
        if natural(number) not in self._made:
            if lazy in MAKE:
                made = MAKE[lazy](self, Target(number))
            else:
                made = handle_class(name, flags)(Remote(self, number, frozenset(flags.split())))
            self._remember(number, made)
        return self._made[number]

    def _with_attributes(self, number: int, name: str, value: Any) -> Any:
        """Plain data of a class of the program that has attributes besides: those are asked for."""
        base = type(value)
        if base not in _FIXED_BASES:
            raise BadFrame("no plain data that cannot change")
        if natural(number) not in self._made:
            if (name, base) not in self._plain_classes:
                self._plain_classes[name, base] = type(
                    name if name.isidentifier() else base.__name__,
                    (base,),
                    {
                        "__module__": "program",
                        "__getattr__": lambda value, name: self.ask("attribute", value, name),
                        "__str__": lambda value: self.ask("operate", "__str__", (value,)),
                        "__repr__": lambda value: self.ask("operate", "__repr__", (value,)),
                    },
                )
            self._remember(number, base.__new__(self._plain_classes[name, base], value))
        return self._made[number]

    def _remember(self, number: int, made: Any) -> None:
        self._made[number] = made
        self._numbers[id(made)] = number

    def new(self, name: str) -> Any:
        if name[:1] == "=":
            kind = self._class(name[1:])
            if kind is None or plain_base(kind) is not None or issubclass(kind, BaseException | type):
                raise BadFrame("no class of the tests")
            return object.__new__(kind)
        if name.startswith("numpy:ndarray;") and not self._takes_arrays:
            made: list[Any] = []
            self._shapes[id(made)] = [int(size) for size in name.rpartition(";")[2].split(",") if size]
            return made
        return super().new(name)

    def fill(self, made: Any, items: list[Any]) -> None:
        """A list in place of an array takes its shape. An object gets its attributes, but none in place of what its
        class has methods for."""
        if type(made) is list:
            made[:] = _nested(items, self._shapes.pop(id(made)))
            return
        if kinds.is_changing(made):
            return super().fill(made, items)
        wanted = dict(zip(items[::2], items[1::2], strict=True))
        for name in wanted:
            own = getattr(type(made), name, None) if type(name) is str else None
            if not (type(name) is str and name.isidentifier() and name[:2] != "__"):
                raise BadFrame("no attribute")
            if callable(own) or isinstance(own, property):
                raise BadFrame(f"an attribute in place of {name}")
        set_fields(made, wanted)

    def state(self, value: Any) -> list[Any]:
        return flat(fields(value))


def natural(number: Any) -> int:
    """A number that the program names something by. BadFrame for anything else."""
    if type(number) is not int or number < 0:
        raise BadFrame("no number")
    return number


def _nested(items: list[Any], shape: list[int]) -> list[Any]:
    """A flat list as nested lists of a shape."""
    for size in reversed(shape[1:]):
        count = len(items) // size if size else shape[0]
        items = [items[place * size : (place + 1) * size] for place in range(count)]
    return items


def _library_path(value: Any) -> list[str] | None:
    """[module, name] of a function or class of the standard library, which the program has too."""
    module = getattr(value, "__module__", None) or getattr(getattr(value, "__objclass__", None), "__module__", None)
    name = getattr(value, "__qualname__", None)
    if type(module) is not str or type(name) is not str or module.partition(".")[0] not in sys.stdlib_module_names:
        return None
    known = found(sys.modules.get(module), name)
    return [module, name] if known is value or (type(value) is type(str.upper) and known == value) else None
