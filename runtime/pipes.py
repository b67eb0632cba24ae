"""Standard output and error whose reader has left, as in `| head -1`: what is printed is dropped, without an error."""

import os
import sys
from collections.abc import Callable
from typing import Any, TextIO, cast

_closed: list[str] = []
_actions: list[Callable[[], Any]] = []


class _QuietStream:
    """A text stream that drops what is written once its pipe is broken. Everything else is the stream's own."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._close()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._close()
            self._stream.flush()

    def _close(self) -> None:
        """What is still in the stream's buffer, and all that follows, goes to the null device."""
        void = os.open(os.devnull, os.O_WRONLY)
        os.dup2(void, self._stream.fileno())
        os.close(void)
        _closed.append(self._stream.name)
        for action in _actions:
            action()


def quiet_pipes() -> None:
    """From now on a broken pipe at standard output or error is no error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__"):  # not a test's, nor wrapped already
            setattr(sys, name, cast(TextIO, _QuietStream(stream)))


def on_broken_pipe(action: Callable[[], Any]) -> None:
    """Calls `action` when that happens, at once where it has happened before."""
    _actions.append(action)
    if _closed:
        action()
