"""Values of the standard library (and numpy) that cross as what they are: how each is taken apart and built again.

Nothing is imported until a value of its module is at hand. What is built on the trusted side is built from plain parts,
by the types named here and no others.
"""

from __future__ import annotations

import sys
from _collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SINGLE = {"Ellipsis": ..., "NotImplemented": NotImplemented}
_EXACT = (int, str, float, bool, bytes, type(None))
_NUMBER_KINDS = "biufcSUmM"


def import_name(name: str) -> Any:
    """The module or class of a dotted name."""
    module, _, attribute = name.partition(":")
    __import__(module)
    found = sys.modules[module]
    return getattr(found, attribute) if attribute else found


def _as_text(kind: Any, text: Any) -> Any:
    if type(text) is not str:
        raise TypeError("text expected")
    return kind(text)


def _integers(kind: Any, *parts: Any) -> Any:
    if not all(type(part) is int for part in parts):
        raise TypeError("integers expected")
    return kind(*parts)


def _isoformat(kind: Any, text: Any) -> Any:
    return kind.fromisoformat(text)


# type: (parts of a value, the value of its parts)
_FIXED: dict[str, tuple[Callable[[Any], Any], Callable[..., Any]]] = {
    "decimal:Decimal": (lambda value: [str(value)], _as_text),
    "fractions:Fraction": (lambda value: [value.numerator, value.denominator], _integers),
    "datetime:datetime": (lambda value: [value.isoformat()], _isoformat),
    "datetime:date": (lambda value: [value.isoformat()], _isoformat),
    "datetime:time": (lambda value: [value.isoformat()], _isoformat),
    "datetime:timedelta": (lambda value: [value.days, value.seconds, value.microseconds], _integers),
    "datetime:timezone": (lambda value: [value.utcoffset(None)], lambda kind, offset: kind(offset)),
    "pathlib:PosixPath": (lambda value: [str(value)], _as_text),
    "pathlib:PurePosixPath": (lambda value: [str(value)], _as_text),
    "pathlib:PureWindowsPath": (lambda value: [str(value)], _as_text),
    "uuid:UUID": (lambda value: [str(value)], _as_text),
    "collections:ChainMap": (lambda value: list(value.maps), lambda kind, *maps: kind(*maps)),
    "collections:UserString": (lambda value: [value.data], _as_text),
    "time:struct_time": (lambda value: [tuple(value)], lambda kind, parts: kind(parts)),
    "builtins:dict_keys": (lambda value: list(value), lambda _, *keys: dict.fromkeys(keys).keys()),
    "builtins:dict_values": (lambda value: list(value), lambda _, *values: dict(enumerate(values)).values()),
    "builtins:dict_items": (lambda value: list(value), lambda _, *pairs: dict(pairs).items()),
    "builtins:mappingproxy": (lambda value: [dict(value)], lambda _, content: dict(content)),
    "builtins:memoryview": (lambda value: [value.tobytes()], lambda _, content: memoryview(bytes(content))),
    "builtins:slice": (lambda value: [value.start, value.stop, value.step], lambda kind, *parts: kind(*parts)),
    "builtins:ellipsis": (lambda value: [], lambda _: ...),
    "builtins:NotImplementedType": (lambda value: [], lambda _: NotImplemented),
}
_UNNAMED = {"dict_keys", "dict_values", "dict_items", "mappingproxy", "ellipsis", "NotImplementedType"}


def reduce(value: Any) -> tuple[Any, ...] | None:
    """("L", parts) or ("O", name, items) of a value of a known type, None of any other."""
    kind = type(value)
    name = f"{kind.__module__}:{kind.__qualname__}"
    if name in _FIXED:
        return "L", [name, *_FIXED[name][0](value)]
    if name in _CHANGING:
        return "O", name + _CHANGING[name].detail(value), _CHANGING[name].items(value)
    if kind is type and value.__module__ == "builtins":
        return "L", ["type", value.__name__]
    if kind.__module__ == "numpy" and "numpy" in sys.modules:
        return _reduce_numpy(value, sys.modules["numpy"])
    return None


def build(name: str, *parts: Any) -> Any:
    """The value of the parts that `reduce` gave."""
    if name == "type":
        return _builtin_type(*parts)
    if name == "numpy":
        dtype, item = parts
        return _dtype(dtype).type(item)
    kind = None if name.partition(":")[2] in _UNNAMED else import_name(name) if name in _FIXED else None
    return _FIXED[name][1](kind, *parts)


def _builtin_type(name: str) -> type:
    kind = getattr(sys.modules["builtins"], name)
    if type(kind) is not type:
        raise TypeError("no type")
    return kind


class _Changing:
    """A mutable type: what of a value belongs into its name, its items, a new one, and how one is filled."""

    def __init__(
        self,
        items: Callable[[Any], list[Any]],
        fill: Callable[[Any, list[Any]], None],
        detail: Callable[[Any], str] = lambda value: "",
        make: Callable[[Any, str], Any] = lambda kind, detail: kind(),
    ) -> None:
        self.items, self.fill, self.detail, self.make = items, fill, detail, make


def _pairs(value: Any) -> list[Any]:
    return [part for pair in dict.items(value) for part in pair]


def _fill_pairs(made: Any, items: list[Any]) -> None:
    dict.clear(made) if not hasattr(made, "move_to_end") else made.clear()
    for key, value in zip(items[::2], items[1::2], strict=True):
        made[key] = value


def _fill_default(made: Any, items: list[Any]) -> None:
    made.default_factory = items[0]
    _fill_pairs(made, items[1:])


def _fill_sequence(made: Any, items: list[Any]) -> None:
    made.clear()
    made.extend(items)


def _fill_array(made: Any, items: list[Any]) -> None:
    del made[:]
    made.frombytes(items[0])


def _fill_stream(made: Any, items: list[Any]) -> None:
    made.seek(0)
    made.truncate()
    made.write(items[0])
    made.seek(items[1])


def _fill_numpy(made: Any, items: list[Any]) -> None:
    if made.size != len(items):
        raise ValueError("an array of another size")
    if made.dtype.kind != "O":
        made.flat = items
    else:
        for place, item in enumerate(items):
            made.flat[place] = item


def _make_array(kind: Any, typecode: str) -> Any:
    return kind(typecode)


def _make_numpy(kind: Any, detail: str) -> Any:
    dtype, _, shape = detail.partition(";")
    sizes = [int(size) for size in shape.split(",") if size]
    count = 1
    for size in sizes:
        count *= size
    dtype = import_name("numpy").dtype(object) if dtype == "O" else _dtype(dtype)
    if count * dtype.itemsize > 1 << 28 or len(sizes) > 32:
        raise ValueError("too large an array")
    return kind(sizes, dtype)


def _numpy_name(value: Any) -> str:
    kind = "O" if value.dtype.kind not in _NUMBER_KINDS else value.dtype.str
    return f"{kind};{','.join(map(str, value.shape))}"


_CHANGING = {
    "collections:OrderedDict": _Changing(lambda value: [part for pair in value.items() for part in pair], _fill_pairs),
    "collections:Counter": _Changing(_pairs, _fill_pairs),
    "collections:defaultdict": _Changing(lambda value: [value.default_factory, *_pairs(value)], _fill_default),
    "collections:deque": _Changing(
        list, _fill_sequence, lambda value: f";{value.maxlen}", lambda kind, detail: deque((), int(detail))
    ),
    "collections:UserDict": _Changing(
        lambda value: _pairs(value.data), lambda made, items: _fill_pairs(made.data, items)
    ),
    "collections:UserList": _Changing(lambda value: list(value.data), _fill_sequence),
    "array:array": _Changing(
        lambda value: [value.tobytes()], _fill_array, lambda value: ";" + value.typecode, _make_array
    ),
    "numpy:ndarray": _Changing(
        lambda value: value.reshape(-1).tolist(), _fill_numpy, lambda value: ";" + _numpy_name(value), _make_numpy
    ),
    "_io:StringIO": _Changing(lambda value: [value.getvalue(), value.tell()], _fill_stream),
    "_io:BytesIO": _Changing(lambda value: [value.getvalue(), value.tell()], _fill_stream),
    "types:SimpleNamespace": _Changing(
        lambda value: _pairs(vars(value)), lambda made, items: _fill_pairs(vars(made), items)
    ),
}


def new(name: str) -> Any:
    """An empty object of a mutable type."""
    kind, _, detail = name.partition(";")
    return _CHANGING[kind].make(import_name(kind), detail)


def is_same(one: Any, other: Any) -> bool:
    """Whether two items of a container are the same object, or equal data of the simplest types."""
    return one is other or (type(one) is type(other) and type(one) in _EXACT and one == other)


def is_fixed(value: Any) -> bool:
    return f"{type(value).__module__}:{type(value).__qualname__}" in _FIXED


def is_changing(value: Any) -> bool:
    return f"{type(value).__module__}:{type(value).__qualname__}" in _CHANGING


def contents(value: Any) -> list[Any]:
    """What an object of a mutable type holds."""
    return _CHANGING[f"{type(value).__module__}:{type(value).__qualname__}"].items(value)


def fill(made: Any, items: list[Any]) -> None:
    """Gives a mutable object the contents `items` in place of its own."""
    _CHANGING[f"{type(made).__module__}:{type(made).__qualname__}"].fill(made, items)


def _dtype(text: Any) -> Any:
    numpy = import_name("numpy")
    if type(text) is not str or text.lstrip("<>|=")[:1] not in tuple(_NUMBER_KINDS) or len(text) > 20:
        raise ValueError("no plain dtype")
    return numpy.dtype(text)


def _reduce_numpy(value: Any, numpy: Any) -> tuple[Any, ...] | None:
    if isinstance(value, numpy.generic) and value.dtype.kind in _NUMBER_KINDS:
        return "L", ["numpy", value.dtype.str, value.item()]
    return None
