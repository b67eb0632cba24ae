"""Frames: plain data across a pipe, each with its length before it."""

from __future__ import annotations

import os

from reward.code.inside.wire import READ, BadFrame, FrameTooLong, Reader, Writer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_REPLY_BYTES = 16 << 20
MAX_REQUEST_BYTES = 256 << 20
MAX_MESSAGE_BYTES = 1 << 16
MAX_MESSAGES = 100_000


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
        view = view[os.write(descriptor, view) :]


def receive(descriptor: int, limit: int) -> bytes:
    size = int.from_bytes(_read_exactly(descriptor, 4), "little")
    if size > limit:
        raise FrameTooLong(f"{size} bytes")
    return _read_exactly(descriptor, size)


def _read_exactly(descriptor: int, size: int) -> bytes:
    pieces = []
    while size:
        piece = os.read(descriptor, min(size, 1 << 20))
        if not piece:
            raise EOFError
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def frames(output: bytes) -> list[Any]:
    """The messages in `output`, up to the first that is none. For the trainer's own process, where output may be a
    program's: a message is a text, a number or a flat dict of them, of MAX_MESSAGE_BYTES at most, and whatever bytes
    come, time and memory are linear in them."""
    messages: list[Any] = []
    position = 0
    while position + 4 <= len(output) and len(messages) < MAX_MESSAGES:
        size = int.from_bytes(output[position : position + 4], "little")
        body = output[position + 4 : position + 4 + size]
        if not len(body) == size <= MAX_MESSAGE_BYTES:
            break
        try:
            messages.append(_flat(body))
        except BadFrame:
            break
        position += 4 + size
    return messages


def _flat(body: bytes) -> Any:
    reader = Reader(body)
    if body[:1] in (b"i", b"s", b"T", b"F", b"N"):
        return reader.loads()
    try:
        if reader.take(1) != b"d":
            raise BadFrame("no flat message")
        pairs = [(_scalar(reader, b"s"), _scalar(reader, b"isTFN")) for _ in range(reader.count() // 2)]
    except ValueError as error:
        raise BadFrame(str(error)) from None
    if reader.position != len(body):
        raise BadFrame("bytes left over")
    return dict(pairs)


def _scalar(reader: Reader, tags: bytes) -> Any:
    tag = reader.take(1)
    if tag not in tags:
        raise BadFrame("no flat message")
    return READ[tag](reader)
