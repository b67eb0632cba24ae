"""The untrusted side of function tests. Nothing here is trusted once the program is loaded: all that leaves is data,
and data is all that the other side accepts."""

from __future__ import annotations

import posix

from reward.code.inside.errors import error_names
from reward.code.inside.link import Link
from reward.code.inside.operations import Operations
from reward.code.inside.plain import MAX_REPLY_BYTES, MAX_REQUEST_BYTES
from reward.code.inside.script import MODULE, leave_streams, load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Served(Operations):
    """The program, for the tests."""

    def do_load(self, source: str, entries: list[str], classes: list[str]) -> tuple[Any, ...]:
        """Runs the program. (values of those of `entries` that it defines, of the classes of errors among them instead
        (their number, the names of their classes), those of `classes` that it defines). A program may end itself, with
        success, at its end."""
        try:
            load(source, self.module)
        except SystemExit as end:
            if end.code not in (None, 0):
                raise
        self.known_classes = set(classes)
        values, errors = self.do_globals(entries), {}
        for name, value in list(values.items()):
            if isinstance(value, type) and issubclass(value, BaseException):
                errors[name] = self.number(value), error_names(values.pop(name))
        return values, errors, [name for name in classes if self.class_of(name) is not None]

    def do_missing(self, name: str) -> None:
        raise NameError(f"name {name!r} is not defined")


def serve() -> None:
    """Answers the tests' side until it is gone: requests come on standard input, answers go to standard output."""
    calls, answers = posix.dup(0), posix.dup(1)
    leave_streams()
    side = Served(MODULE("program"))
    side.link = Link(side, calls, answers, may_take=MAX_REQUEST_BYTES, may_send=MAX_REPLY_BYTES)
    try:
        while True:
            side.link.serve()
    except EOFError:
        posix._exit(0)
