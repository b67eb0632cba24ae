"""Copies of the program's values that a test changes in place.

`node.children.append(child)` changes a copy here, and what the program holds stays as it was. A right program may
fail a test after that, so that such a failure is no evidence; a pass still is.
"""

from __future__ import annotations

from _operator import is_

from reward.code.inside import kinds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from reward.code.inside.link import Link

MAX_HELD = 4_000  # items of all copies that are watched: every request compares them


class Copies:
    """Watches the containers that came from the program. is_lost: a test changed one, did not pass it back, and asked
    the program something else than the function that it came from, which makes a new one."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._held: dict[int, tuple[Any, list[Any], Any]] = {}  # by identity, what it held, the function it is from
        self._size = 0
        self._function: Any = None
        self.is_lost = False

    def sent(self, request: tuple[str, tuple[Any, ...]], numbered: list[Any]) -> None:
        """Compares the copies; of those that are passed back the program is told what they hold now."""
        self._function = _called_function(*request)
        passed = {id(value) for value in numbered}
        for value, before, function in self._held.values():
            is_told = id(value) in passed or (function is not None and function is self._function)
            self.is_lost |= not is_told and not self._is_same(value, before)
        for value in numbered:
            self.renew(value)

    def received(self, numbered: list[Any]) -> None:
        for value in numbered:
            self._hold(value, self._function)

    def renew(self, value: Any) -> None:
        """The program knows what it holds now."""
        if (held := self._held.pop(id(value), None)) is not None:
            self._size -= 1 + len(held[1])
            self._hold(value, held[2])

    def _hold(self, value: Any, function: Any) -> None:
        items = self._link.contents(value)
        self._held[id(value)] = value, items, function
        self._size += 1 + len(items)
        while self._size > MAX_HELD and len(self._held) > 1:
            self._size -= 1 + len(self._held.pop(next(iter(self._held)))[1])

    def _is_same(self, value: Any, before: list[Any]) -> bool:
        if type(value) is set:
            return len(value) == len(before) and value.issuperset(before)
        now = self._link.contents(value)
        return len(now) == len(before) and (all(map(is_, now, before)) or all(map(kinds.is_same, now, before)))


def _called_function(operation: str, arguments: tuple[Any, ...]) -> Any:
    """The object of the program that a request calls, None where it does something else."""
    return arguments[0] if operation == "call" and arguments[1] is None else None
