"""What a test passed to the program, as the test made it (see reward.code.expected)."""

from __future__ import annotations

from _collections import deque

from reward.code.inside import kinds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from reward.code.inside.link import Link

_PLAIN = (list, dict, set, deque, bytearray)


class Originals:
    """Of each container that the program changed: what it held before the first change since the test changed it
    itself, or accepted the change."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._before: dict[int, tuple[Any, list[Any]]] = {}
        self._after: dict[int, list[Any]] = {}

    def note(self, value: Any, change: Callable[[], None]) -> None:
        """Makes a change of the program's, and remembers what was there."""
        if not self._is_changed(value):
            self._before[id(value)] = value, self._link.contents(value)
        change()
        self._after[id(value)] = self._link.contents(value)

    def accept(self) -> None:
        """What was changed is what the test wanted."""
        self._before.clear()
        self._after.clear()

    def of(self, value: Any) -> Any:
        """`value` as the test made it: itself, or a copy if the program has changed it or something in it."""
        return self._of(value, {}) if self._before else value

    def _is_changed(self, value: Any) -> bool:
        after = self._after.get(id(value))
        now = self._link.contents(value) if after is not None else []
        return after is not None and len(now) == len(after) and all(map(kinds.is_same, now, after))

    def _of(self, value: Any, known: dict[int, Any]) -> Any:
        if id(value) in known:
            return known[id(value)]
        known[id(value)] = value
        if type(value) is tuple:
            items = [self._of(item, known) for item in value]
            return value if all(map(kinds.is_same, items, value)) else tuple(items)
        is_changed = self._is_changed(value)
        if not is_changed and type(value) not in _PLAIN:
            return value
        held = self._before[id(value)][1] if is_changed else self._link.contents(value)
        items = [self._of(item, known) for item in held]
        if not is_changed and all(map(kinds.is_same, items, held)):
            return value
        known[id(value)] = made = _empty(value)
        self._link.side.refill(made, items)
        return made


def _empty(value: Any) -> Any:
    if type(value) in _PLAIN:
        return type(value)()
    import copy

    return copy.copy(value)
