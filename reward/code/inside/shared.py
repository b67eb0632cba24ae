"""What both sides of a link know: the names of operations that cross, and objects of classes that both have."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any

CONVERSIONS = (
    *("__len__", "__iter__", "__next__", "__reversed__", "__int__", "__float__", "__complex__", "__index__", "__abs__"),
    *("__neg__", "__pos__", "__invert__", "__round__", "__trunc__", "__floor__", "__ceil__", "__format__", "__bytes__"),
    *("__str__", "__repr__", "__dir__", "__fspath__", "__length_hint__", "__enter__"),
)
ITEMS = ("__getitem__", "__setitem__", "__delitem__")
ARITHMETIC = (
    *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow"),
    *("lshift", "rshift", "and", "xor", "or"),
)
BINARY = tuple(f"__{letter}{name}__" for name in ARITHMETIC for letter in ("", "r", "i"))
OTHERS = (
    *("__call__", "__contains__", "__bool__", "__exit__"),
    *("__await__", "__aiter__", "__anext__", "__aenter__", "__aexit__"),
)
FORWARDED = frozenset((*CONVERSIONS, *ITEMS, *BINARY, *OTHERS))
# besides those: what the other side has to know of an object
IDENTITY = "identity"  # is equal to itself alone
BASE = "base"  # derives from a plain type that can change
CLASS = "class"


def fields(value: Any) -> dict[str, Any]:
    """The attributes that an object itself holds, those in slots too."""
    found = dict(getattr(value, "__dict__", ()))
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            slot = f"_{kind.__name__.lstrip('_')}{name}" if name[:2] == "__" and name[-2:] != "__" else name
            if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                found[slot] = getattr(value, slot)
    return found


def set_fields(value: Any, wanted: dict[str, Any]) -> None:
    """Gives an object exactly these attributes, without its class's own code."""
    for name in set(fields(value)) - set(wanted):
        object.__delattr__(value, name)
    for name, content in wanted.items():
        object.__setattr__(value, name, content)


def tuple_class(name: str, names: list[str], module: Any) -> Any:
    """The named tuple of `module` that is called so and has these fields, or one made here."""
    known = getattr(module, name, None) if type(name) is str else None
    if isinstance(known, type) and issubclass(known, tuple) and list(getattr(known, "_fields", ())) == names:
        return known
    key = (name, *names)
    if key not in _made:
        if len(names) > 1000 or len(_made) > 1000:
            raise ValueError("too many named tuples")
        __import__("collections")
        _made[key] = sys.modules["collections"].namedtuple(name, names)
    return _made[key]


_made: dict[tuple[str, ...], Any] = {}


def is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and isinstance(getattr(type(value), "_fields", None), tuple)


def is_enum(value: Any) -> bool:
    return "enum" in sys.modules and isinstance(value, sys.modules["enum"].Enum)


def found(top: Any, path: str) -> Any:
    """A name with dots, below a module or class; None where there is none."""
    for name in path.split("."):
        top = getattr(top, name, None)
    return top


async def _coroutine() -> None:
    pass


async def _async_generator() -> AsyncIterator[None]:
    yield


_made_coroutine = _coroutine()
_made_coroutine.close()
LAZY: dict[type, str] = {  # (the module `types` has names for these; its import takes a while)
    type(_ for _ in ()): "generator",
    type(_made_coroutine): "coroutine",
    type(_async_generator()): "async_generator",
}


class _Named:
    def method(self) -> None:
        pass


FUNCTION = type(fields)
METHODS: tuple[type, ...] = type([].append), type(_Named().method)
