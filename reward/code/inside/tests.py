"""The trusted side: runs the tests. What they use of the program are handles on objects in a sandbox of its own.

In: {"program", "prefix", "tests", "entries", "makers", "modules", "classes", "preparation", "mutates"}, on stdin.
Out: status and detail of each test, or of all of them as test -1 (reward.code.inside.told). The program's side hangs on
the two descriptors that `run_tests` is given.
"""

from __future__ import annotations

import posix
import sys

from reward.code.inside.bindings import Bindings
from reward.code.inside.copies import Copies
from reward.code.inside.link import ANSWER, Link
from reward.code.inside.originals import Originals
from reward.code.inside.plain import MAX_REPLY_BYTES, MAX_REQUEST_BYTES, read_frame
from reward.code.inside.told import tell as tell_one
from reward.code.inside.wire import BadFrame, FrameTooLong, NotPlain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, NoReturn

MAX_NESTED = 60  # calls inside calls; each takes a dozen frames of the interpreter
MAX_WAIT_SECONDS = 4.0  # of one thread of a test for another
# what the interpreter itself calls, and takes some errors of for an answer: IndexError for the end of a sequence
_INTERPRETED = (
    *("__getitem__", "__iter__", "__next__", "__anext__", "__getattr__", "__getattribute__", "__get__", "__missing__"),
    *("__contains__", "__len__", "__length_hint__", "__bool__", "__eq__", "__hash__", "__index__", "__instancecheck__"),
)


class ProgramGone(BaseException):
    """A test cannot go on: the program's process ended or broke the protocol, or would have decided the test. Not an
    Exception: no test may take it for an expected error."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Program(Bindings):
    """The program behind its pipes. `failure` stays set once a call could not be answered, `denied` until the test at
    hand has ended."""

    def __init__(self, calls: int, answers: int, job: dict[str, Any], namespace: dict[str, Any]) -> None:
        super().__init__(job, namespace)
        self.link = Link(self, answers, calls, may_take=MAX_REPLY_BYTES, may_send=MAX_REQUEST_BYTES)
        self.count = 0
        self.failure: ProgramGone | None = None
        self.denied: ProgramGone | None = None
        self.originals = Originals(self.link)
        self.copies = Copies(self.link) if job["mutates"] else None
        self.namespace |= {"__original__": self.originals.of, "__accept__": self.originals.accept}

    def ask(self, operation: str, *arguments: Any) -> Any:
        """What the program answers, or raises."""
        if self.failure is not None or self.denied is not None:
            raise self.failure or self.denied  # type: ignore[misc]
        if len(self.link.asked) >= MAX_NESTED:
            raise RecursionError("calls between the tests and the program are nested too deep")
        if not self.link.lock.acquire(timeout=MAX_WAIT_SECONDS):
            self.deny("ungradable", "threads of a test wait for each other")
        try:
            kind, content = self.link.ask(operation, *arguments)
        except NotPlain as error:
            self.deny("ungradable", f"a test passes {error}")
        except (EOFError, OSError):
            raise self._fail("gone", "the program's process ended") from None
        except FrameTooLong as error:
            raise self._fail("output_limit", str(error)) from None
        except (BadFrame, RecursionError, MemoryError) as error:
            raise self._fail("error", repr(error)) from None
        finally:
            self.link.lock.release()
        self.count += 1
        if operation not in ("load", "globals") and not self.link.asked and not self.link.served:
            self.refresh()
        if kind == ANSWER:
            return content
        self._raise(content, operation, arguments)

    def deny(self, status: str, detail: str) -> NoReturn:
        """Ends the test at hand, whatever it catches."""
        self.denied = self.denied or ProgramGone(status, detail)
        if self.link.served:  # the program waits for an answer that will not come
            self.failure = self.failure or self.denied
        raise self.denied

    def _fail(self, status: str, detail: str) -> ProgramGone:
        self.failure = self.failure or ProgramGone(status, detail)
        return self.failure

    def _raise(self, error: BaseException, operation: str, arguments: tuple[Any, ...]) -> NoReturn:
        """Raises the program's error, as itself only where the interpreter does not take it for an answer."""
        text = f"{type(error).__name__}: {error}"
        if not isinstance(error, Exception):
            if not isinstance(error, SystemExit | KeyboardInterrupt) or type(error).__name__ not in self.test:
                self.deny("error", text)
        elif isinstance(error, FrameTooLong):
            raise self._fail("output_limit", str(error))
        elif isinstance(error, StopIteration | StopAsyncIteration):
            if (operation, arguments[0]) != ("operate", "__next__") and arguments[1:2] != ("__anext__",):
                error = RuntimeError(text)
        elif isinstance(error, LookupError | AttributeError | TypeError | NotImplementedError) and _is_interpreted():
            error = RuntimeError(text)
        self.raised = error
        raise error

    def changed(self, value: Any, items: Any) -> None:
        self.originals.note(value, lambda: super(Program, self).changed(value, items))
        if self.copies is not None:
            self.copies.renew(value)

    def sent(self, request: tuple[str, tuple[Any, ...]], numbered: list[Any]) -> None:
        if self.copies is not None:
            self.copies.sent(request, numbered)

    def received(self, numbered: list[Any]) -> None:
        if self.copies is not None:
            self.copies.received(numbered)

    def is_fatal(self, error: BaseException) -> bool:
        return isinstance(error, ProgramGone)

    def assertion_failed(self, error: AssertionError) -> None:
        self.denied = self.denied or ProgramGone("wrong", str(error))


def _is_interpreted() -> bool:
    """Whether the tests' code that calls the program is a method that the interpreter calls."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name in _INTERPRETED and frame.f_globals.get("__name__") == "tests":
            return True
        frame = frame.f_back
    return False


def run_tests(calls: int, answers: int) -> None:
    job, verdicts = read_frame(0, MAX_REQUEST_BYTES), posix.dup(1)
    posix.dup2(posix.open("/dev/null", posix.O_RDWR), 1)

    def tell(test: int, status: str, detail: str) -> None:
        tell_one(verdicts, test, status, detail)

    try:
        namespace = prepare(job)
    except BaseException as error:
        tell(-1, "ungradable", f"the prefix does not run: {type(error).__name__}: {error}")
        posix._exit(0)
    program = Program(calls, answers, job, namespace)
    try:
        program.load(job["program"])
    except ProgramGone as gone:
        tell(-1, gone.status, str(gone))
        posix._exit(0)
    except BaseException as error:
        is_memory = isinstance(error, MemoryError)
        tell(-1, "memory" if is_memory else "error", f"{type(error).__name__}: {error}")
        posix._exit(0)
    for index, test in enumerate(job["tests"]):
        status, detail = run_test(test, namespace, program)
        if status == "passed" and index in job["preparation"]:
            status = "preparation"
        tell(index, status, detail)
    posix._exit(0)


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """What the tests see besides the program: the prefix's own names, and modules they use unimported."""
    module = sys.modules["tests"] = type(sys)("tests")
    namespace = module.__dict__
    exec(compile(job["prefix"], "<prefix>", "exec", dont_inherit=True), namespace)
    namespace.update({name: __import__(name) for name in job["modules"]})
    return namespace


def run_test(test: str, namespace: dict[str, Any], program: Program) -> tuple[str, str]:
    """passed only when the whole test ran, called the program, and every call was answered, even if the test swallows
    what went wrong. A test that ran without calling the program was "preparation"."""
    calls_before = 0
    program.test, program.denied, program.raised = test, None, None
    status, detail = "passed", ""
    try:
        program.refresh()
        calls_before = program.count
        exec(compile(test, "<test>", "exec", dont_inherit=True), namespace)
    except ProgramGone:
        pass
    except AssertionError as error:
        status, detail = "wrong", str(error)
    except MemoryError:
        status, detail = "memory", ""
    except BaseException as error:
        status = "error" if error is program.raised else "wrong"
        detail = f"{type(error).__name__}: {error}"
    if (gone := program.failure or program.denied) is not None:
        return gone.status, str(gone)
    if status in ("wrong", "error") and program.copies is not None and program.copies.is_lost:
        return "ungradable", f"a test changes a copy of a value that the program may hold; then: {detail}"
    if status == "passed" and program.count == calls_before:
        return "preparation", ""
    return status, detail
