"""Two sides that ask each other: a request goes out, its answer comes back, and in between the other side may ask too.

What a request passes by value is numbered (wire). The answer, and whatever the other side asks meanwhile, refers to it
by number and tells what changed in it, so that a list that a function sorts in place is sorted on this side too, and
is the same list. What an object may have kept of its arguments both sides keep, and tell each other's changes.
"""

from __future__ import annotations

import _thread
from _collections import deque
from _operator import is_

from reward.code.inside import kinds
from reward.code.inside.plain import receive, send
from reward.code.inside.wire import BadFrame, FrameTooLong, Hooks, NotPlain, Reader, Writer, flat, reference, spread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

MAX_KEPT = 1000  # items of all that is kept: every message compares them
ASK, ANSWER, RAISED = "ask", "answer", "raised"


class Side(Hooks):
    """What one side of a link does with requests, and what it has to say besides values."""

    def perform(self, operation: str, arguments: tuple[Any, ...]) -> Any:
        raise BadFrame(f"unknown operation {operation!r}")

    def keeps(self, operation: str, arguments: tuple[Any, ...], value: Any) -> bool:
        """Whether what was done may have kept its arguments, beyond its end."""
        return False

    def state(self, value: Any) -> list[Any]:
        """What an object by value holds now."""
        return kinds.contents(value)

    def changed(self, value: Any, items: Any) -> None:
        """The other side tells what its copy of an object holds now."""
        self.refill(value, items)

    def refill(self, value: Any, items: Any) -> None:
        """Gives an object of this side's the contents that the other side's copy of it has now."""
        if type(items) is not list:
            raise BadFrame("no contents")
        kind = type(value)
        if kind is list:
            value[:] = items
        elif kind is dict:
            value.clear()
            value.update(zip(spread(items[::2]), items[1::2], strict=True))
        elif kind is set:
            value.clear()
            value.update(spread(items))
        elif kind is bytearray:
            value[:] = bytes(*items) if type(items[0]) is bytes else b""
        elif kind is deque and value.maxlen is None:
            value.clear()
            value.extend(items)
        else:
            self.fill(value, items)

    def sent(self, request: tuple[str, tuple[Any, ...]], numbered: list[Any]) -> None:
        """A request goes out, with these containers by value."""

    def received(self, numbered: list[Any]) -> None:
        """An answer came, with these containers by value."""

    def news(self) -> Any:
        """Goes with every message."""
        return None

    def hear(self, news: Any) -> None:
        """The other side's news."""

    def is_fatal(self, error: BaseException) -> bool:
        """Whether an error ends all instead of being told to the other side."""
        return False


class Link:
    def __init__(self, side: Side, incoming: int, outgoing: int, *, may_take: int, may_send: int) -> None:
        """may_take, may_send: bytes of one message."""
        self.side = side
        self.lock = _thread.RLock()
        self._incoming, self._outgoing = incoming, outgoing
        self._may_take, self._may_send = may_take, may_send
        self.served: list[Reader] = []  # requests of the other side that wait for an answer, the newest last
        self.asked: list[Writer] = []  # requests of this side that do
        self._kept: list[Any] = []
        self._kept_items: list[list[Any]] = []  # what each held when a message last told

    def ask(self, operation: str, *arguments: Any) -> tuple[str, Any]:
        """(ANSWER, value) or (RAISED, error). NotPlain and FrameTooLong, before anything is sent, for arguments that
        cannot cross; BadFrame, EOFError and OSError for a link that is broken."""
        with self.lock:
            self.asked.append(self._send(ASK, (operation, arguments)))
            try:
                self.side.sent((operation, arguments), self.asked[-1].numbered)
                while True:
                    kind, content, reader = self._receive()
                    if kind != ASK:
                        return kind, content
                    self._serve(content, reader)
            finally:
                self.asked.pop()

    def serve(self) -> None:
        """Answers one request. EOFError when the other side is gone."""
        kind, content, reader = self._receive()
        if kind != ASK:
            raise BadFrame("an answer to nothing")
        self._serve(content, reader)

    def _serve(self, request: tuple[str, tuple[Any, ...]], reader: Reader) -> None:
        self.served.append(reader)
        try:
            kept: list[int] = []
            try:
                kind, content = ANSWER, self.side.perform(*request)
                if self.side.keeps(*request, content):
                    kept = self._to_keep(reader.numbered)
            except BaseException as error:
                if self.side.is_fatal(error):
                    raise
                kind, content = RAISED, error
            with self.lock:
                try:
                    self._send(kind, content, kept)
                    self._keep(reader.numbered, kept)
                except (NotPlain, FrameTooLong, RuntimeError, MemoryError) as error:
                    self._send(RAISED, error)
        finally:
            self.served.pop()

    def _send(self, kind: str, content: Any, kept: Sequence[int] = ()) -> Writer:
        known = {id(value): reference("K", number) for number, value in enumerate(self._kept)}
        places = self._changes(self._kept, self._kept_items)
        changes = [(-1 - number, items) for number, items in places]
        if self.served:
            served = self.served[-1]
            known |= {id(value): reference("A", number) for number, value in enumerate(served.numbered)}
            changes += self._changes(served.numbered, served.items)
        writer = Writer(self.side, known)
        body = writer.dumps((kind, content, changes, list(kept), self.side.news()), self._may_send)
        for number, items in changes:
            if number < 0:
                self._kept_items[-1 - number] = items
            else:
                self.served[-1].items[number] = items
        send(self._outgoing, body)
        return writer

    def _receive(self) -> tuple[str, Any, Reader]:
        known = self.asked[-1].numbered if self.asked else ()
        reader = Reader(receive(self._incoming, self._may_take), self.side, known, self._kept)
        message = reader.loads()
        if type(message) is not tuple or len(message) != 5 or message[0] not in (ASK, ANSWER, RAISED):
            raise BadFrame("no message")
        kind, content, changes, kept, news = message
        try:
            for number, items in changes:
                self.side.changed(known[number] if number >= 0 else self._kept[-1 - number], items)
                if number < 0:
                    self._kept_items[-1 - number] = items
            if kind == ANSWER:
                self._keep(known, kept)
                self.side.received(reader.numbered)
            self.side.hear(news)
            if kind == ASK:
                operation, arguments = content
                if type(operation) is not str or type(arguments) is not tuple:
                    raise BadFrame("no request")
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise BadFrame(f"{type(error).__name__}: {error}") from None
        if kind == RAISED and not isinstance(content, BaseException):
            raise BadFrame("no error")
        return kind, content, reader

    def _to_keep(self, numbered: list[Any]) -> list[int]:
        """As many of the containers of a request as there is room for."""
        room = MAX_KEPT - sum(map(len, self._kept_items))
        found = []
        for number, value in enumerate(numbered):
            room -= 1 + len(self.contents(value))
            if room < 0:
                break
            found.append(number)
        return found

    def _keep(self, numbered: Sequence[Any], kept: list[int]) -> None:
        if len(self._kept) + len(kept) > MAX_KEPT:
            raise BadFrame("too much is kept")
        for number in kept:
            self._kept.append(numbered[number])
            self._kept_items.append(self.contents(numbered[number]))

    def _changes(self, values: list[Any], known: list[list[Any]]) -> list[tuple[int, list[Any]]]:
        """(number, what it holds now) of the containers that hold something else than the other side knows."""
        changes = []
        for number, (value, before) in enumerate(zip(values, known, strict=True)):
            if type(value) is set:
                if len(value) != len(before) or not value.issuperset(before):
                    changes.append((number, list(value)))
                continue
            now = self.contents(value)
            if len(now) != len(before) or not (all(map(is_, now, before)) or all(map(kinds.is_same, now, before))):
                changes.append((number, now))
        return changes

    def contents(self, value: Any) -> list[Any]:
        """What a container, or an object by value, holds."""
        kind = type(value)
        if kind is list or (kind is deque and value.maxlen is None):
            return list(value)
        if kind is dict:
            return flat(value)
        if kind is set:
            return list(value)
        if kind is bytearray:
            return [bytes(value)]
        return kinds.contents(value) if kinds.is_changing(value) else self.side.state(value)
