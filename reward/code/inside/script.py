"""Runs the program: as a script, or in one interpreter with its tests."""

from __future__ import annotations

import posix
import sys

from reward.code.inside.plain import MAX_REQUEST_BYTES, read_frame
from reward.code.inside.told import tell

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MEMORY_CODE = 77
MODULE = type(sys)


def leave_streams() -> None:
    """The standard streams lead nowhere from now on."""
    nothing = posix.open("/dev/null", posix.O_RDWR)
    for descriptor in (0, 1, 2):
        posix.dup2(nothing, descriptor)


def load(source: str, module: Any) -> None:
    """Runs the program as a module that is known (dataclasses and pickle look modules up by name), with a file of its
    own (inspect and multiprocessing look for it)."""
    sys.modules[module.__name__] = module
    path = module.__file__ = posix.getcwd() + "/main.py"
    with open(path, "wb") as file:
        file.write(source.encode("utf-8", "replace"))
    exec(compile(source, path, "exec", dont_inherit=True), module.__dict__)


def run_script(request: int) -> None:
    """Reads {"program"} from the descriptor `request`, then runs it as `__main__`."""
    source = read_frame(request, MAX_REQUEST_BYTES)["program"]
    posix.close(request)
    sys.argv = ["main.py"]
    try:
        load(source, MODULE("__main__"))
    except MemoryError:
        posix._exit(MEMORY_CODE)


def run_joint() -> None:
    """Forgeable: program and tests in one interpreter. {"program", "tests", "secret"} in; each pass is told with the
    secret."""
    job, answers = read_frame(0, MAX_REQUEST_BYTES), posix.dup(1)
    leave_streams()
    module = MODULE("program")
    load(job["program"], module)
    for index, test in enumerate(job["tests"]):
        try:
            exec(compile(test, "<test>", "exec", dont_inherit=True), module.__dict__)
        except Exception:
            continue
        tell(answers, index, "passed", secret=job["secret"])
    posix._exit(0)
