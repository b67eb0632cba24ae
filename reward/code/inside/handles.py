"""The program's objects as the tests see them. Each operation crosses to the program and comes back as plain data, or
as one more object; none that would let the program decide what a test compares is left to it.

The program answers what an object's methods return, what its attributes and items are, how long it is. Equality, order
and hashes are not the program's to answer: between an object and plain data they end the test. An object that stands
where plain data should (as the sum of a list) is seen for what it is by that.

- expected: the tests use it as an object of a class of the program, so that a right program gives one (BY_USE), or
  they call what is named like a class (BY_NAME). What ends such a test makes it ungradable; elsewhere, it makes it
  wrong.
- tainted: made by an operation with plain data of the test (`f(2) - 42`). What it says may be made to fit, and is no
  evidence.
"""

from __future__ import annotations

from reward.code.inside.lazy import stepped
from reward.code.inside.shared import BASE, BINARY, CLASS, CONVERSIONS, FORWARDED, IDENTITY
from reward.code.inside.wire import PLAIN_TYPES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from reward.code.inside.asking import Asker

PLAIN_ATTRIBUTES = frozenset(name for kind in (*PLAIN_TYPES, range) for name in dir(kind))


_NUMERIC = (
    *("__abs__", "__int__", "__float__", "__complex__", "__index__", "__round__", "__trunc__", "__floor__", "__ceil__"),
    *("__bool__", "__len__"),
)

BY_NAME, BY_USE = 1, 2

# what an object may answer with plain data to plain data: a difference to what is expected is none
_TELLING = {f"__{letter}{name}__" for name in ("add", "mul", "matmul", "pow") for letter in ("", "r", "i")}
_QUERIES = ("count", "index", "get", "keys", "values", "items", "copy")  # of plain types: they change nothing
_EXTENDING = ("__iadd__", "__ior__")  # an object of its own kind says more afterwards, not what is left of a difference


class Remote:
    """What this side knows of an object of the program."""

    __slots__ = ("program", "number", "flags", "expected", "is_tainted", "makes", "methods")

    def __init__(self, program: Asker, number: int, flags: frozenset[str]) -> None:
        self.program, self.number, self.flags = program, number, flags
        self.expected = 0  # or BY_NAME or BY_USE
        self.makes = 0  # the same of what it returns when called
        self.is_tainted = False
        self.methods: dict[str, Method] = {}

    def deny(self, what: str, is_form: bool = False) -> NoReturn:
        """Ends the test: the program would decide it. is_form: a right program's objects would come to this too."""
        status = "ungradable" if is_form or self.expected else "wrong"
        self.program.deny(status, f"the program would decide {what} of its object")


class Handle:
    """An object of the program. Subclasses (handle_class) have the operations that its class has."""

    __slots__ = ("_remote_", "__weakref__")
    _remote_: Remote

    def __init__(self, remote: Remote) -> None:
        object.__setattr__(self, "_remote_", remote)

    def __getattr__(self, name: str) -> Any:
        remote = self._remote_
        if (method := remote.methods.get(name)) is not None:
            return method
        is_method, value = remote.program.ask("get", self, name)
        if is_method is True:
            return remote.methods.setdefault(name, Method(self, name))
        if remote.is_tainted and name in PLAIN_ATTRIBUTES:
            remote.deny(name)
        if remote.makes and isinstance(value, Handle):
            value._remote_.makes = remote.makes
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote_.program.ask("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._remote_.program.ask("del", self, name)

    def __eq__(self, other: object) -> bool:
        return _is_equal(self, other)

    def __ne__(self, other: object) -> bool:
        return not _is_equal(self, other)

    def __hash__(self) -> int:
        remote = self._remote_
        if IDENTITY not in remote.flags:
            remote.deny("the hash")
        return object.__hash__(self)

    def __bool__(self) -> bool:
        remote = self._remote_
        if "__bool__" in remote.flags and not remote.expected:
            remote.deny("the truth")
        for name in ("__bool__", "__len__"):
            if name in remote.flags:
                return bool(_convert(self, name))
        return True

    def __contains__(self, wanted: Any) -> bool:
        remote = self._remote_
        if BASE in remote.flags:
            return wanted in _plain(self)
        if "__contains__" in remote.flags and CLASS not in remote.flags and remote.expected:
            remote.deny("what is in")
        if not remote.flags & {"__iter__", "__getitem__"}:
            raise TypeError(f"argument of type {type(self).__name__!r} is not iterable")
        return any(item is wanted or item == wanted for item in self)  # type: ignore[attr-defined]

    def __instancecheck__(self, value: Any) -> bool:
        return self._remote_.program.ask("is_instance", self, value) is True

    def __subclasscheck__(self, kind: Any) -> bool:
        return self._remote_.program.ask("is_subclass", self, kind) is True

    def __copy__(self) -> Any:
        return self._remote_.program.ask("copy", self, False)

    def __deepcopy__(self, memo: Any) -> Any:
        return self._remote_.program.ask("copy", self, True)

    def __mro_entries__(self, bases: Any) -> Any:
        self._remote_.program.deny("ungradable", "a test derives a class from one of the program's")

    def __reduce_ex__(self, protocol: Any) -> Any:
        self._remote_.program.deny("ungradable", "a test pickles an object of the program")

    def __str__(self) -> str:
        return _convert(self, "__str__")

    def __repr__(self) -> str:
        return _convert(self, "__repr__")

    def __format__(self, form: str) -> str:
        return _convert(self, "__format__", form)

    def __dir__(self) -> Any:
        return _convert(self, "__dir__")

    @property
    def __doc__(self) -> Any:  # type: ignore[override]
        return self.__getattr__("__doc__")


class Method:
    """A method of an object of the program."""

    def __init__(self, owner: Handle, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return call(self.owner, self.name, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self.owner._remote_.program.ask("attribute", self, name)


def call(target: Handle, name: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls an object of the program, or a method of it."""
    remote = target._remote_
    is_data = name in PLAIN_ATTRIBUTES and not remote.expected and not remote.makes
    if is_data and name in _QUERIES and BASE in remote.flags:
        return getattr(_plain(target), str(name))(*args, **kwargs)
    value = remote.program.ask("call", target, name, args, kwargs, bool(remote.makes))
    if remote.makes and isinstance(value, Handle):
        value._remote_.expected = remote.makes
    if is_data:
        if isinstance(value, Handle):
            value._remote_.is_tainted |= bool(args or kwargs)
        elif (args or kwargs or remote.is_tainted) and value is not None:
            remote.deny(name or "the result")
    return value


def _is_equal(one: Handle, other: Any) -> bool:
    if one is other or other is None:
        return one is other
    remote = one._remote_
    theirs = other._remote_ if isinstance(other, Handle) else None
    if BASE in remote.flags and (theirs is None or BASE in theirs.flags):
        return bool(_plain(one) == (other if theirs is None else _plain(other)))
    if theirs is not None and IDENTITY in remote.flags & theirs.flags:
        return False
    remote.deny("the equality", is_form=theirs is not None)


def _plain(handle: Handle) -> Any:
    """What an object holds whose class derives from a plain type."""
    if handle._remote_.is_tainted:
        handle._remote_.deny("what is left")
    return handle._remote_.program.ask("plain", handle)


def _convert(handle: Handle, name: str, *more: Any) -> Any:
    """An operation without an operand that the program could fit its answer to."""
    remote = handle._remote_
    value = remote.program.ask("operate", name, (handle, *more))
    if remote.is_tainted:
        if isinstance(value, Handle):
            value._remote_.is_tainted, value._remote_.expected = True, remote.expected
        elif name in _NUMERIC or remote.expected != BY_USE:
            remote.deny(name)
    return value


def _compare(name: str) -> Callable[..., Any]:
    def compare(self: Handle, other: Any) -> Any:
        remote = self._remote_
        other_is_handle = isinstance(other, Handle)
        if BASE in remote.flags and not other_is_handle:
            return getattr(_plain(self), name)(other)
        remote.deny("the order", is_form=other_is_handle)

    return compare


def _arithmetic(name: str) -> Callable[..., Any]:
    is_reflected = name[2] == "r" and f"__{name[3:]}" in FORWARDED

    def operate(self: Handle, other: Any, *modulus: Any) -> Any:
        remote = self._remote_
        theirs = other._remote_ if isinstance(other, Handle) else None
        expected = max(remote.expected, 0 if theirs is None else theirs.expected)
        is_tainted = remote.is_tainted or theirs is None or theirs.is_tainted
        operands = (other, self, *modulus) if is_reflected else (self, other, *modulus)
        value = remote.program.ask("operate", f"__{name[3:]}" if is_reflected else name, operands)
        if not isinstance(value, Handle):
            if is_tainted and (remote.is_tainted or expected != BY_USE or name not in _TELLING):
                remote.deny("the arithmetic")
        else:
            value._remote_.expected = max(value._remote_.expected, expected)
            value._remote_.is_tainted |= is_tainted and not (expected == BY_USE and name in _EXTENDING)
        return value

    return operate


def _forward(name: str) -> Callable[..., Any]:
    if name in BINARY:
        return _arithmetic(name)
    if name in CONVERSIONS or name == "__getitem__":
        return lambda self, *more: _convert(self, name, *more)
    return lambda self, *more: self._remote_.program.ask("operate", name, (self, *more))


def _exit(self: Handle, kind: Any, error: BaseException | None, traceback: Any) -> bool:
    return may_end(self, error, traceback, self._remote_.program.ask("exit", self, error))


async def _leave(self: Handle, kind: Any, error: BaseException | None, traceback: Any) -> bool:
    return may_end(self, error, traceback, await stepped(self._remote_.program, self, "__aexit__", error))


def may_end(handle: Handle, error: BaseException | None, traceback: Any, is_ended: Any) -> bool:
    """Whether the program's `with` ends an error: one that a test raises on purpose, and no other, neither a failed
    assertion nor what comes of a wrong result."""
    remote = handle._remote_
    if error is None or is_ended is not True:
        return False
    if isinstance(error, AssertionError) or error is remote.program.raised:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    if not _raises(traceback.tb_frame.f_code.co_code[traceback.tb_lasti]):
        remote.deny("what becomes of an error", is_form=True)
    return True


def _raises(operation: int) -> bool:
    import opcode

    return opcode.opname[operation] == "RAISE_VARARGS"


_SPECIAL: dict[str, Callable[..., Any]] = {
    "__call__": lambda self, *args, **kwargs: call(self, None, args, kwargs),
    "__exit__": _exit,
    "__await__": lambda self: stepped(self._remote_.program, self, "__await__").__await__(),
    "__anext__": lambda self: stepped(self._remote_.program, self, "__anext__"),
    "__aenter__": lambda self: stepped(self._remote_.program, self, "__aenter__"),
    "__aexit__": _leave,
}
_ORDER = {name: _compare(name) for name in ("__lt__", "__le__", "__gt__", "__ge__")}
_OWN = {"__annotations__": property(lambda self: self.__getattr__("__annotations__"))}  # else that of Handle is found
_classes: dict[tuple[str, str], type[Handle]] = {}


def handle_class(name: str, flags: str) -> type[Handle]:
    """The class of the handles of a class of the program."""
    if (name, flags) not in _classes:
        names = [flag for flag in flags.split() if flag in FORWARDED and flag not in vars(Handle)]
        methods = {flag: _SPECIAL.get(flag) or _forward(flag) for flag in names}
        own_name = name if name.isidentifier() else "object"
        fixed = {"__slots__": (), "__module__": "program", "__doc__": vars(Handle)["__doc__"], **_OWN}
        _classes[name, flags] = type(own_name, (Handle,), {**_ORDER, **methods, **fixed})
    return _classes[name, flags]
