"""Frames: plain data across a pipe, each with its length before it."""

from __future__ import annotations

import posix

from reward.code.inside.wire import FrameTooLong, Reader, Writer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_REPLY_BYTES = 16 << 20
MAX_REQUEST_BYTES = 256 << 20


def dumps(value: Any, limit: int = MAX_REQUEST_BYTES) -> bytes:
    """`value` as bytes. Subclasses become their base. NotPlain for all else."""
    return Writer().dumps(value, limit)


def loads(data: bytes) -> Any:
    """The value that `dumps` was given, built of exact types. BadFrame for anything else."""
    return Reader(data).loads()


def write_frame(descriptor: int, message: Any, limit: int = MAX_REPLY_BYTES) -> None:
    send(descriptor, dumps(message, limit))


def read_frame(descriptor: int, limit: int = MAX_REPLY_BYTES) -> Any:
    """The next message; EOFError when the other side is gone."""
    return loads(receive(descriptor, limit))


def send(descriptor: int, body: bytes) -> None:
    view = memoryview(len(body).to_bytes(4, "little") + body)
    while view:
        view = view[posix.write(descriptor, view) :]


def receive(descriptor: int, limit: int) -> bytes:
    size = int.from_bytes(_read_exactly(descriptor, 4), "little")
    if size > limit:
        raise FrameTooLong(f"{size} bytes")
    return _read_exactly(descriptor, size)


def _read_exactly(descriptor: int, size: int) -> bytes:
    pieces = []
    while size:
        piece = posix.read(descriptor, min(size, 1 << 20))
        if not piece:
            raise EOFError
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
