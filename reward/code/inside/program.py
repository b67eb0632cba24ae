"""The untrusted side: holds the program and answers calls of its functions with plain data.

Nothing here is trusted once the program is loaded: all that leaves is data, and data is all that the other side
accepts.
"""

from __future__ import annotations

import os
import sys
import types

from reward.code.inside.plain import MAX_REQUEST_BYTES, FrameTooLong, read_frame, write_frame
from reward.code.inside.told import tell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_TEXT = 2000
MEMORY_CODE = 77


def load(source: str, name: str) -> types.ModuleType:
    """Runs the program as a module of its own (dataclasses and pickle look modules up by name), with a file of its own
    (inspect and multiprocessing look for it)."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    path = module.__file__ = os.path.join(os.getcwd(), "main.py")
    with open(path, "wb") as file:
        file.write(source.encode("utf-8", "replace"))
    exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)
    return module


def serve() -> None:
    """{"program": source} in, {"loaded"} or {"raised", "text"} out; then {"call", "args", "kwargs"} in, {"ok"} or
    {"raised"} out."""
    calls, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    try:
        module = load(read_frame(calls, MAX_REQUEST_BYTES)["program"], "program")
    except BaseException as error:
        write_frame(answers, _raised(error))
        os._exit(0)
    write_frame(answers, {"loaded": True})
    while True:
        try:
            request = read_frame(calls, MAX_REQUEST_BYTES)
        except EOFError:
            os._exit(0)
        try:
            function = getattr(module, request["call"])
            write_frame(answers, {"ok": function(*request["args"], **request["kwargs"])})
        except BaseException as error:
            write_frame(answers, _raised(error))


def _raised(error: BaseException) -> dict[str, Any]:
    kind = next((base for base in type(error).__mro__ if base.__module__ == "builtins"), Exception)
    name = type(error).__name__ if isinstance(error, FrameTooLong) else kind.__name__
    try:
        text = str(error)[:MAX_TEXT]
    except BaseException:
        text = ""
    return {"raised": name, "text": text}


def run_script(request: int) -> None:
    """Reads {"program"} from the descriptor `request`, then runs it as `__main__`."""
    source = read_frame(request, MAX_REQUEST_BYTES)["program"]
    os.close(request)
    sys.argv = ["main.py"]
    try:
        load(source, "__main__")
    except MemoryError:
        os._exit(MEMORY_CODE)


def run_joint() -> None:
    """Forgeable: program and tests in one interpreter. {"program", "tests", "secret"} in; each pass is told with the
    secret."""
    job, answers = read_frame(0, MAX_REQUEST_BYTES), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    module = load(job["program"], "program")
    for index, test in enumerate(job["tests"]):
        try:
            exec(compile(test, "<test>", "exec", dont_inherit=True), module.__dict__)
        except Exception:
            continue
        tell(answers, index, "passed", secret=job["secret"])
    os._exit(0)
