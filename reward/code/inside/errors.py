"""Exceptions across the wire: by the names of their classes, so that `except` finds on one side what the other
raised."""

from __future__ import annotations

import builtins
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MAX_TEXT = 2000
# of the standard library: raised by it, and caught in tests
_LIBRARY = {
    *("json.decoder:JSONDecodeError", "decimal:InvalidOperation", "decimal:DivisionByZero", "decimal:Overflow"),
    *("re:error", "struct:error", "binascii:Error", "zlib:error", "statistics:StatisticsError", "csv:Error"),
    *("dataclasses:FrozenInstanceError", "queue:Empty", "queue:Full", "asyncio.queues:QueueEmpty"),
    *("asyncio.queues:QueueFull", "asyncio.exceptions:InvalidStateError", "numpy.linalg:LinAlgError"),
    *("configparser:Error", "ipaddress:AddressValueError", "zoneinfo._common:ZoneInfoNotFoundError"),
}


def reduce_error(error: BaseException, crosses: Callable[[Any], bool]) -> list[Any]:
    """[names of its class and those above it up to a builtin one, arguments, text, attributes]; of the arguments and
    attributes those that can cross."""
    try:
        text = str(error)[:MAX_TEXT]
    except BaseException:
        text = ""
    arguments = error.args if all(map(crosses, error.args)) else (text,)
    fields = {
        name: value for name, value in vars(error).items() if type(name) is str and name[:1] != "_" and crosses(value)
    }
    return [error_names(type(error)), arguments, text, fields]


def error_names(kind: type[BaseException]) -> list[str]:
    """Of a class and those above it, up to a builtin one."""
    names = []
    for above in kind.__mro__:
        names.append(f"{above.__module__}:{above.__qualname__}")
        if above.__module__ == "builtins":
            break
    return names


def build_error(
    resolve: Callable[[str], type[BaseException] | None], names: Any, arguments: Any, text: Any, fields: Any
) -> BaseException:
    """An exception of the first class that `resolve` finds. Where that is not the class itself, or says another text,
    it is of a class made here, with the name and the text."""
    kind = next((kind for name in names if (kind := resolve(name)) is not None), None)
    if kind is None or type(text) is not str or type(arguments) is not tuple:
        raise ValueError("no error")
    error = _made(kind, arguments)
    own_name = names[0].rpartition(":")[2].rpartition(".")[2]
    if own_name != kind.__name__ or _text(error) != text:
        if own_name.isidentifier():
            kind = type(own_name, (kind,), {"__module__": "program", "__str__": lambda self: text})
        error = _made(kind, arguments)
    for name, value in fields.items():
        if type(name) is str and name.isidentifier() and not hasattr(kind, name):
            vars(error)[name] = value
    return error


def _made(kind: type[BaseException], arguments: tuple[Any, ...]) -> BaseException:
    """An exception without a call of its class's own code."""
    error = kind.__new__(kind, *arguments)
    builtin: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    try:
        builtin.__init__(error, *arguments)
    except TypeError:
        error.args = arguments
    return error


def _text(error: BaseException) -> str:
    try:
        return str(error)[:MAX_TEXT]
    except Exception:
        return ""


def known_error(name: str) -> type[BaseException] | None:
    """A builtin exception, or one of the library's whose module is imported here (else nothing here can catch it)."""
    module, _, kind = name.partition(":")
    if module == "builtins":
        found = getattr(builtins, kind, None)
    else:
        found = getattr(sys.modules.get(module), kind, None) if name in _LIBRARY else None
    return found if isinstance(found, type) and issubclass(found, BaseException) else None
