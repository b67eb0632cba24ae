"""Child side of reward.workers: loads one function and runs it on job after job until its parent is gone.

Jobs arrive on standard input as pickles, replies leave on standard output as JSON, both behind an 8-byte length.
Whatever the function itself reads or prints goes to /dev/null and standard error.
"""

import asyncio
import inspect
import json
import os
import pickle
import resource
import signal
import struct
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import IO, Any

from reward.workers.tree import supervise
from runtime.doors import load_target

HEADER = struct.Struct("<Q")


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next frame, or None when the other side is gone."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (size,) = HEADER.unpack(header)
    body = stream.read(size)
    return body if len(body) == size else None


def write_frame(stream: IO[bytes], body: bytes) -> None:
    stream.write(HEADER.pack(len(body)))
    stream.write(body)
    stream.flush()


def signature_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Which keyword arguments a function takes: {"names", "required", "any"}; `any` means **columns."""
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {
        "names": [p.name for p in named],
        "required": [p.name for p in named if p.default is p.empty],
        "any": any(p.kind is p.VAR_KEYWORD for p in parameters),
    }


def _answer(function: Callable[..., Any], job: bytes, cpu_seconds: float) -> dict[str, Any]:
    try:
        args, kwargs = pickle.loads(job)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # the default action of SIGPROF ends the process
        try:
            value = function(*args, **kwargs)
            return {"ok": plain(asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value)}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)
    except BaseException:
        return {"error": traceback.format_exc()}


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def plain(value: Any) -> Any:
    """`value` with arrays, tensors and their scalars turned into lists and numbers, so that JSON holds it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return {"unsupported": type(value).__name__}


def main() -> None:
    settings = json.loads(sys.argv[1])
    supervise(lambda: serve(settings), settings["parent"])


def serve(settings: dict[str, Any]) -> None:
    jobs, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    if settings["memory_bytes"]:
        resource.setrlimit(resource.RLIMIT_AS, (settings["memory_bytes"],) * 2)
    try:
        function = load_target(settings["target"])
        write_frame(replies, json.dumps({"ok": signature_of(function)}).encode())
    except BaseException:
        write_frame(replies, json.dumps({"error": traceback.format_exc()}).encode())
        return
    while (job := read_frame(jobs)) is not None:
        write_frame(replies, json.dumps(_answer(function, job, settings["cpu_seconds"])).encode())
