"""What the tests' side can have done with the program's objects, one request at a time."""

from __future__ import annotations

import _operator
import time

from reward.code.inside import kinds
from reward.code.inside.errors import MAX_TEXT
from reward.code.inside.objects import Kept, Objects
from reward.code.inside.shared import ARITHMETIC, FUNCTION, METHODS
from reward.code.inside.wire import as_base, plain_base

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

AHEAD_SECONDS = 0.005  # how long an iterator may run ahead of the test that reads it
STEP_SECONDS = 0.003  # how long a coroutine runs before the tests' own event loop has its turn
_SMALL = (int, float, bool, type(None), str)


def _functions() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {
        f"__{kind.__name__}__": kind
        for kind in (len, iter, next, reversed, int, float, complex, abs, round, format, bytes, str, repr, dir, divmod)
    }
    for name in (*ARITHMETIC, "index", "neg", "pos", "invert", "getitem", "setitem", "delitem"):
        plain = found.get(f"__{name}__") or getattr(_operator, f"{name}_", None) or getattr(_operator, name)
        found[f"__{name}__"] = plain
        found[f"__i{name}__"] = getattr(_operator, f"i{name}", plain)
    return found


class Operations(Objects):
    """Each method that begins with `do_` answers the request of its name."""

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self._functions = _functions()
        self._tasks: dict[int, Any] = {}
        self._late: dict[int, BaseException] = {}
        self._loop: Any = None

    def perform(self, operation: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(self, f"do_{operation}")(*arguments)

    def keeps(self, operation: str, arguments: tuple[Any, ...], value: Any) -> bool:
        """A method may have kept its arguments in its object, and what is returned if it is no plain data."""
        if operation not in ("call", "set", "operate", "send"):
            return False
        if operation == "call" and arguments[1] is None and type(arguments[0]) is FUNCTION:
            value = value.value if type(value) is Kept else value
            return plain_base(type(value)) is None and value is not None and not kinds.is_fixed(value)
        return True

    def do_call(self, target: Any, name: str | None, args: tuple[Any, ...], kwargs: dict[str, Any], keep: bool) -> Any:
        """Of an object, or of its method `name`. keep: the tests use the result as an object."""
        function = target if name is None else getattr(target, name)
        value = function(*args, **kwargs)
        return Kept(value) if keep else value

    def do_globals(self, names: list[str]) -> dict[str, Any]:
        return {name: getattr(self.module, name) for name in names if hasattr(self.module, name)}

    def do_get(self, target: Any, name: str) -> tuple[bool, Any]:
        """(whether it is a method of the target, else its value)"""
        value = getattr(target, name)
        if type(value) in METHODS and value.__self__ is target:
            return True, None
        return False, value

    def do_attribute(self, target: Any, name: str) -> Any:
        return getattr(target, name)

    def do_set(self, target: Any, name: str, value: Any) -> None:
        setattr(target, name, value)

    def do_del(self, target: Any, name: str) -> None:
        delattr(target, name)

    def do_operate(self, name: str, operands: tuple[Any, ...]) -> Any:
        function = self._functions.get(name)
        if function is None:  # one that only classes of Python have, as __enter__ or __missing__
            function = getattr(type(operands[0]), name)
        return function(*operands)

    def do_copy(self, target: Any, is_deep: bool) -> Any:
        import copy

        return copy.deepcopy(target) if is_deep else copy.copy(target)

    def do_plain(self, target: Any) -> Any:
        """What the plain part of an object holds whose class derives from a plain type."""
        return as_base(target, plain_base(type(target)))

    def do_exit(self, target: Any, error: BaseException | None) -> bool:
        return bool(type(target).__exit__(target, type(error) if error else None, error, None))

    def do_is_instance(self, kind: Any, value: Any) -> bool:
        return isinstance(kind, type) and kind in type(value).__mro__

    def do_is_subclass(self, kind: Any, below: Any) -> bool:
        return isinstance(kind, type) and kind in below.__mro__

    def do_next(self, iterator: Any, count: int) -> tuple[list[Any], bool, Any]:
        """The next items, at most `count` of them: (items, whether that was all, the value that a generator returns).
        More than one only as long as they are small and quickly made."""
        if id(iterator) in self._late:
            raise self._late.pop(id(iterator))
        items: list[Any] = []
        deadline = time.monotonic() + AHEAD_SECONDS
        while len(items) < count:
            try:
                items.append(next(iterator))
            except StopIteration as stop:
                return items, True, stop.value
            except BaseException as error:
                if not items:
                    raise
                self._late[id(iterator)] = error
                break
            if count > 1 and (not _is_small(items[-1]) or time.monotonic() > deadline):
                break
        return items, False, None

    def do_send(self, generator: Any, value: Any) -> tuple[list[Any], bool, Any]:
        try:
            return [generator.send(value)], False, None
        except StopIteration as stop:
            return [], True, stop.value

    def do_throw(self, generator: Any, error: BaseException) -> tuple[list[Any], bool, Any]:
        try:
            return [generator.throw(error)], False, None
        except StopIteration as stop:
            return [], True, stop.value

    def do_step(self, target: Any, name: str, error: BaseException | None) -> tuple[bool, Any]:
        """Runs an awaitable, or what a method of an object gives, for a while: (whether it is done, its result)."""
        import asyncio

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        task = self._tasks.get(id(target))
        if task is None:
            arguments = (type(error) if error else None, error, None) if name == "__aexit__" else ()
            awaitable = target if name == "__await__" else getattr(type(target), name)(target, *arguments)
            task = self._tasks[id(target)] = self._loop.create_task(_awaited(awaitable))
        self._loop.run_until_complete(asyncio.wait({task}, timeout=STEP_SECONDS))
        if not task.done():
            return False, None
        del self._tasks[id(target)]
        return True, task.result()

    def do_cancel(self, target: Any) -> None:
        task = self._tasks.pop(id(target), None)
        if task is not None:
            task.cancel()
            self._loop.run_until_complete(_settled(task))


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


async def _settled(task: Any) -> None:
    import asyncio

    await asyncio.wait({task})


def _is_small(item: Any) -> bool:
    if type(item) is tuple:
        return len(item) <= 16 and all(type(part) is not tuple and _is_small(part) for part in item)
    return type(item) in _SMALL and (type(item) is not str or len(item) < MAX_TEXT)
