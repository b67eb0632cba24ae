"""What a test changes around the program: standard input, `input`, captured output, random seeds, the depth of
recursion. It goes to the program before the next call; only what the program prints comes back.

Nothing of the program's changes the tests' side: a random state that came back would let it choose its own tests.
"""

from __future__ import annotations

import builtins
import io
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_STREAMS = ("stdout", "stderr")


class TestsWorld:
    """The tests' side. has_seeds: whether a test sets a random seed."""

    def __init__(self, has_seeds: bool) -> None:
        self._has_seeds, self._input = has_seeds, builtins.input
        self._streams = {name: getattr(sys, name) for name in _STREAMS}
        self._known: dict[str, Any] = {
            "stdin": sys.stdin,
            "input": builtins.input,
            "recursion": sys.getrecursionlimit(),
        }

    def news(self) -> dict[str, Any] | None:
        """What is not as the program has it."""
        now = {"stdin": sys.stdin, "input": builtins.input, "recursion": sys.getrecursionlimit()}
        if self._has_seeds:
            now |= _random_states()
        found = {name: value for name, value in now.items() if name not in self._known or self._differs(name, value)}
        self._known |= found
        if found.get("input") is self._input:
            found["input"] = None
        if isinstance(found.get("stdin"), io.TextIOBase):
            found["stdin"] = found["stdin"].read() if isinstance(found["stdin"], io.StringIO) else ""
        if captured := [name for name, stream in self._streams.items() if getattr(sys, name) is not stream]:
            found["captured"] = captured
        return found or None

    def _differs(self, name: str, value: Any) -> bool:
        known = self._known[name]
        return value != known if name in ("recursion", "random", "numpy") else value is not known

    def hear(self, printed: Any) -> None:
        """What the program printed goes where the test has put the stream."""
        for name, text in (printed or {}).items():
            if name in _STREAMS and type(text) is str and getattr(sys, name) is not self._streams[name]:
                getattr(sys, name).write(text)


def _random_states() -> dict[str, Any]:
    random, numpy = sys.modules.get("random"), sys.modules.get("numpy")
    states = {} if random is None else {"random": random.getstate()}
    if numpy is not None:
        name, keys, *more = numpy.random.get_state()
        states["numpy"] = (name, tuple(keys.tolist()), *more)
    return states


class ProgramsWorld:
    """The program's side."""

    def __init__(self) -> None:
        self._captured: dict[str, io.StringIO] = {}
        self._input = builtins.input
        self._own = {name: getattr(sys, name) for name in _STREAMS}

    def hear(self, news: dict[str, Any] | None) -> None:
        news = news or {}
        if "stdin" in news:
            sys.stdin = io.StringIO(news["stdin"])
        if "input" in news:
            builtins.input = news["input"] or self._input
        if "recursion" in news:
            from contextlib import suppress

            with suppress(RecursionError):  # it may be deeper than that already
                sys.setrecursionlimit(news["recursion"])
        if "random" in news:
            import random

            random.setstate(news["random"])
        if "numpy" in news:
            import numpy

            numpy.random.set_state(news["numpy"])
        captured = news.get("captured", ())
        for name in _STREAMS:
            if name in captured and name not in self._captured:
                self._captured[name] = io.StringIO()
                setattr(sys, name, self._captured[name])
            elif name not in captured and self._captured.pop(name, None) is not None:
                setattr(sys, name, self._own[name])

    def news(self) -> dict[str, str] | None:
        """What was printed since the last time."""
        printed = {}
        for name, stream in self._captured.items():
            if text := stream.getvalue():
                printed[name] = text
                stream.seek(0)
                stream.truncate()
        return printed or None
