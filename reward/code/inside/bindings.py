"""The program's names in the tests, what the tests change around the program, and what the program asks of them."""

from __future__ import annotations

from reward.code.inside.handles import Handle
from reward.code.inside.values import Missing, Values, natural
from reward.code.inside.wire import BadFrame
from reward.code.inside.world import TestsWorld

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Bindings(Values):
    """namespace: the tests', where the program's names are bound. What is no function or class may change at any call,
    and is fetched again after each."""

    def __init__(self, job: dict[str, Any], namespace: dict[str, Any]) -> None:
        super().__init__(job["numpy"])
        self.namespace = namespace
        self._job = job
        self._world = TestsWorld(job["seeds"])
        self._closed: list[int] = []
        self.test = ""  # the source of the test at hand

    def load(self, source: str) -> None:
        """Sends the program and binds its names."""
        values, errors, defined = self.ask("load", source, self._job["entries"], self._job["classes"])
        self._defined = set(defined)
        for name, (number, names) in sorted(errors.items(), key=lambda item: len(item[1][1])):
            values[name] = self._errors[names[0]] = self._error_stand_in(names)
            self._remember(number, values[name])
        for name in self._job["entries"]:
            value = values.get(name, Missing(self, name))
            if isinstance(value, Handle):
                value._remote_.makes = self._job["makers"].get(name, 0)
            self.namespace[name] = value

    def refresh(self) -> None:
        """Fetches what the tests use of the program besides functions and classes, as it is now."""
        entries = [name for name in self._job["entries"] if name in self.test]
        if names := [name for name in entries if _may_change(self.namespace[name])]:
            self.namespace.update(self.ask("globals", names))

    def _error_stand_in(self, names: list[str]) -> type[Exception]:
        """A class in place of the program's class of errors, below the same ones."""
        kind = next(kind for name in names[1:] if (kind := self._error_class(name)) is not None)
        if not issubclass(kind, Exception) or issubclass(kind, StopIteration | StopAsyncIteration):
            kind = Exception
        return type(names[0].rpartition(":")[2].rpartition(".")[2], (kind,), {"__module__": "program"})

    def news(self) -> Any:
        news = self._world.news()
        if self._closed:
            news, self._closed = {**(news or {}), "closed": self._closed}, []
        return news

    def hear(self, news: Any) -> None:
        self._world.hear(news)

    def forget(self, number: int) -> None:
        """The program closes such a generator before the next call."""
        self._closed.append(number)

    def perform(self, operation: str, arguments: tuple[Any, ...]) -> Any:
        """What the program asks of the tests: calls of functions that it was given, items of iterators."""
        number, *rest = arguments
        target = self._own[natural(number)]
        if operation == "next":
            try:
                return [next(target)], False
            except StopIteration:
                return [], True
        if operation != "call":
            raise BadFrame(f"unknown operation {operation!r}")
        args, kwargs = rest
        try:
            return target(*args, **kwargs)
        except AssertionError as error:
            self.assertion_failed(error)
            raise

    def assertion_failed(self, error: AssertionError) -> None:
        """In a function of the tests that the program called, and may go on as if nothing were."""


def _may_change(value: Any) -> bool:
    return not isinstance(value, type) and not (isinstance(value, Handle) and "__call__" in value._remote_.flags)
