"""The trusted side: runs the tests. The entry points under test are stand-ins that call the program in its own sandbox.

In: {"program", "prefix", "tests", "entries", "modules"} on standard input. Out: status and detail of each test, or of
all of them as test -1 (reward.code.inside.told). The program's side hangs on the two descriptors that `run_tests` is
given.
"""

from __future__ import annotations

import builtins
import os
import sys
import types
from collections.abc import Callable

from reward.code.inside.plain import (
    MAX_REQUEST_BYTES,
    BadFrame,
    FrameTooLong,
    NotPlain,
    read_frame,
    write_frame,
)
from reward.code.inside.told import tell as tell_one

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_TEXT = 500


class ProgramGone(BaseException):
    """The program's process ended or broke the protocol. Not an Exception: no test may take it for an expected
    error."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class CannotCross(BaseException):
    """A test passes something to the program that is no plain data."""


class Program:
    """The program behind its pipes. `failure` stays set once a call could not be answered."""

    def __init__(self, calls: int, answers: int) -> None:
        self._calls, self._answers = calls, answers
        self.count = 0
        self.failure: ProgramGone | None = None
        self.raised: BaseException | None = None

    def load(self, source: str) -> str:
        """Sends the program; returns what went wrong with it, or ""."""
        reply = self._exchange({"program": source})
        return "" if reply.get("loaded") is True else ": ".join(_raised(reply))

    def entry(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                reply = self._exchange({"call": name, "args": args, "kwargs": kwargs})
            except NotPlain as error:
                raise CannotCross(str(error)) from None
            self.count += 1
            return self._answer(reply)

        call.__name__ = call.__qualname__ = name
        return call

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.failure is not None:
            raise self.failure
        try:
            write_frame(self._calls, request, MAX_REQUEST_BYTES)
            reply = read_frame(self._answers)
        except (EOFError, OSError):
            raise self._fail("gone", "the program's process ended") from None
        except FrameTooLong as error:
            raise self._fail("output_limit", str(error)) from None
        except (BadFrame, RecursionError, MemoryError) as error:
            raise self._fail("error", repr(error)) from None
        if type(reply) is not dict:
            raise self._fail("error", "no reply")
        return reply

    def _answer(self, reply: dict[str, Any]) -> Any:
        if "ok" in reply:
            return reply["ok"]
        name, text = _raised(reply)
        if name == FrameTooLong.__name__:
            raise self._fail("output_limit", text)
        kind = getattr(builtins, name, None)
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise self._fail("error", f"{name}: {text}")
        try:
            self.raised = kind(text)
        except TypeError:
            self.raised = RuntimeError(f"{name}: {text}")
        raise self.raised

    def _fail(self, status: str, detail: str) -> ProgramGone:
        self.failure = ProgramGone(status, detail)
        return self.failure


def _raised(reply: dict[str, Any]) -> tuple[str, str]:
    name, text = reply.get("raised"), reply.get("text")
    return (name if type(name) is str else "no error")[:MAX_TEXT], (text if type(text) is str else "")[:MAX_TEXT]


def run_tests(calls: int, answers: int) -> None:
    job, verdicts = read_frame(0, MAX_REQUEST_BYTES), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    program = Program(calls, answers)

    def tell(test: int, status: str, detail: str) -> None:
        tell_one(verdicts, test, status, detail)

    try:
        namespace = prepare(job, program)
    except BaseException as error:
        tell(-1, "ungradable", f"the prefix does not run: {type(error).__name__}: {error}")
        os._exit(0)
    try:
        problem = program.load(job["program"])
    except ProgramGone as gone:
        tell(-1, gone.status, str(gone))
        os._exit(0)
    if problem:
        tell(-1, "memory" if problem.startswith("MemoryError") else "error", problem)
        os._exit(0)
    for index, test in enumerate(job["tests"]):
        tell(index, *run_test(test, namespace, program))
    os._exit(0)


def prepare(job: dict[str, Any], program: Program) -> dict[str, Any]:
    """What the tests see: the prefix's own names, modules they use unimported, and the stand-ins for the program's
    functions."""
    module = sys.modules["tests"] = types.ModuleType("tests")
    namespace = module.__dict__
    exec(compile(job["prefix"], "<prefix>", "exec", dont_inherit=True), namespace)
    namespace.update({name: __import__(name) for name in job["modules"]})
    namespace.update({name: program.entry(name) for name in job["entries"]})
    return namespace


def run_test(test: str, namespace: dict[str, Any], program: Program) -> tuple[str, str]:
    """passed only when the whole test ran, called the program, and every call was answered, even if the test swallows
    what went wrong. A test that ran without calling the program was "preparation"."""
    calls_before = program.count
    status, detail = "passed", ""
    try:
        exec(compile(test, "<test>", "exec", dont_inherit=True), namespace)
    except CannotCross as error:
        return "ungradable", f"a test passes {error}"
    except ProgramGone:
        pass
    except AssertionError as error:
        status, detail = "wrong", str(error)
    except MemoryError:
        status, detail = "memory", ""
    except BaseException as error:
        status = "error" if error is program.raised else "wrong"
        detail = f"{type(error).__name__}: {error}"
    if program.failure is not None:
        return program.failure.status, str(program.failure)
    if status == "passed" and program.count == calls_before:
        return "preparation", ""
    return status, detail
