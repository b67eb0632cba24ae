"""One program in its sandboxes: three ways to run it, and what each makes of what came out."""

import math
import os
import re
import secrets
import select
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import IO, Any, get_args

from reward.code.inside.plain import MAX_REQUEST_BYTES, write_frame
from reward.code.inside.script import MEMORY_CODE
from reward.code.inside.told import told
from reward.code.plan import Plan
from reward.code.process import End, Process
from reward.code.sandbox import Isolation, Limits, start
from reward.code.verdict import CodeTests, Status, Verdict

START_CPU_SECONDS = 2
TESTS_CPU_SECONDS = 20
MAX_OUTPUT_BYTES = 8 << 20
MAX_TIMEOUTS = 5
MAX_PARALLEL = 2.0  # times one process's limit of processor time, for all processes of a program together
TICK_SECONDS = 0.25
IDLE_SECONDS = 5.0
EXIT_SECONDS = 1.0
KILLED_FROM_OUTSIDE = "a sandbox was killed from outside"
DID_NOT_START = "a sandbox did not start"
TOLD = {*get_args(Status), "preparation", "gone"}
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Room:
    """Where a program runs: a way to isolate, and a limit of memory."""

    isolation: Isolation
    memory_bytes: int

    @contextmanager
    def process(self, cpu_seconds: float, call: list[Any], **streams: Any) -> Iterator[Process]:
        limits = Limits(cpu_seconds=math.ceil(cpu_seconds), memory_bytes=self.memory_bytes)
        process = start(self.isolation, limits, call, **streams)
        try:
            yield process
        finally:
            process.end()


def run_apart(room: Room, code: str, tests: CodeTests, plan: Plan) -> Verdict:
    """Function tests: the program in one sandbox, the tests in another, only plain data between them."""
    cpu_seconds = tests.time_limit_seconds + START_CPU_SECONDS
    with ExitStack() as stack:
        calls, calls_in = _pipe(stack)
        answers, answers_in = _pipe(stack)
        verdicts, verdicts_in = _pipe(stack)
        request = stack.enter_context(_message(plan.job(code)))
        program = stack.enter_context(room.process(cpu_seconds, ["program", "serve"], stdin=calls, stdout=answers_in))
        judge = stack.enter_context(
            room.process(
                cpu_seconds + TESTS_CPU_SECONDS,
                ["tests", "run_tests", calls_in.fileno(), answers.fileno()],
                stdin=request,
                stdout=verdicts_in,
                pass_fds=(calls_in.fileno(), answers.fileno()),
            )
        )
        for end in (calls, calls_in, answers, answers_in, verdicts_in):
            end.close()
        output, stopped = _collect(verdicts, [program, judge], cpu_seconds)
        unfinished, gone = (stopped or _why_ended(process) for process in (judge, program))
        overran = None if stopped else _overran(program, cpu_seconds)
        if not (judge.end() and program.end()):
            return _left_out(tests, DID_NOT_START)
    if overran:
        return Verdict(False, overran, 0, len(tests.tests))
    return _judged(told(output, len(tests.tests)), len(tests.tests), gone, unfinished)


def _left_out(tests: CodeTests, detail: str) -> Verdict:
    return Verdict(False, "infra_error", 0, len(tests.tests), detail)


_STATUS: dict[End, Status] = {"memory": "memory", "timeout": "timeout", "outside": "infra_error", "left": "error"}


def _why_ended(process: Process) -> Status:
    return _STATUS[process.why_ended(EXIT_SECONDS)]


def _judged(messages: Iterable[tuple[int, str, str]], total: int, gone: Status, unfinished: Status) -> Verdict:
    """The verdict from what the tests' side told. gone: why the program left, unfinished: why the tests were not
    finished."""
    statuses: list[Any] = [unfinished] * total
    details: dict[int, str] = {}
    for test, status, detail in messages:
        if status in TOLD:
            for index in range(total) if test < 0 else [test]:
                statuses[index], details[index] = gone if status == "gone" else status, detail
    if "infra_error" in statuses:
        return Verdict(False, "infra_error", 0, total, KILLED_FROM_OUTSIDE)
    if "ungradable" in statuses:
        return Verdict(False, "ungradable", 0, total, details[statuses.index("ungradable")])
    if not set(statuses) - {"preparation"}:
        return Verdict(False, "ungradable", 0, total, "the tests pass without calling the program")
    return _verdict(statuses, details)


def _verdict(statuses: list[Any], details: dict[int, str]) -> Verdict:
    """Counts the tests; what ran without calling the program ("preparation") is none."""
    total = len(statuses) - statuses.count("preparation")
    failed = next((i for i, status in enumerate(statuses) if status not in ("passed", "preparation")), None)
    if failed is None:
        return Verdict(True, "passed", total, total)
    return Verdict(False, statuses[failed], statuses.count("passed"), total, details.get(failed, ""))


def run_script(room: Room, code: str, tests: CodeTests) -> Verdict:
    """Tests on standard input: one run for each case, the output compared here, word by word.

    After MAX_TIMEOUTS cases that ran out of time the rest count as such without being run.
    """
    assert tests.outputs is not None
    statuses: list[Status] = []
    for given, expected in zip(tests.tests, tests.outputs, strict=True):
        if statuses.count("timeout") >= MAX_TIMEOUTS:
            statuses.append("timeout")
            continue
        status = _run_case(room, code, given, expected, tests.time_limit_seconds + START_CPU_SECONDS)
        if status is None:
            return _left_out(tests, DID_NOT_START)
        if status == "infra_error":
            return _left_out(tests, KILLED_FROM_OUTSIDE)
        statuses.append(status)
    return _verdict(statuses, {})


def _run_case(room: Room, code: str, given: str, expected: str, cpu_seconds: float) -> Status | None:
    """None where the sandbox did not start."""
    with ExitStack() as stack:
        output_end, output_in = _pipe(stack)
        program = stack.enter_context(_message({"program": code}))
        stdin = stack.enter_context(_file(given.encode("utf-8", "surrogatepass")))
        call = ["script", "run_script", program.fileno()]
        process = stack.enter_context(
            room.process(cpu_seconds, call, stdin=stdin, stdout=output_in, pass_fds=[program.fileno()])
        )
        output_in.close()
        output, stopped = _collect(output_end, [process], cpu_seconds)
        ended = stopped or _overran(process, cpu_seconds) or _why_ended(process)
        code_left = process.exit_code(0.0)
        if not process.end():
            return None
    if ended != "error":
        return ended
    if code_left != 0:
        return "memory" if code_left == MEMORY_CODE else "error"
    return "passed" if _same_words(output.decode("utf-8", "replace"), expected) else "wrong"


def _same_words(output: str, expected: str) -> bool:
    """Compared word by word, up to the first that differs."""
    words, wanted = (map(re.Match.group, _WORD.finditer(text)) for text in (output, expected))
    return all(word == other for word, other in zip_longest(words, wanted))


def run_together(room: Room, code: str, tests: CodeTests) -> Verdict:
    """Forgeable: program and tests in one interpreter; a test passed when a secret comes out after its last line."""
    cpu_seconds = tests.time_limit_seconds + START_CPU_SECONDS
    total, secret = len(tests.tests), secrets.token_hex(16)
    source = code if code.startswith(tests.prefix) else f"{tests.prefix}\n{code}"
    with ExitStack() as stack:
        results, results_in = _pipe(stack)
        request = stack.enter_context(_message({"program": source, "tests": tests.tests, "secret": secret}))
        process = stack.enter_context(
            room.process(cpu_seconds, ["script", "run_joint"], stdin=request, stdout=results_in)
        )
        results_in.close()
        output, stopped = _collect(results, [process], cpu_seconds)
        failed = stopped or _why_ended(process)
        overran = None if stopped else _overran(process, cpu_seconds)
        if not process.end():
            return _left_out(tests, DID_NOT_START)
    if overran:
        return Verdict(False, overran, 0, total)
    passed = {test for test, status, _ in told(output, total, secret) if status == "passed"}
    if failed == "infra_error" and len(passed) < total:
        return _left_out(tests, KILLED_FROM_OUTSIDE)
    failed = "wrong" if failed == "error" else failed
    return _verdict(["passed" if index in passed else failed for index in range(total)], {})


def _pipe(stack: ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    reader, writer = os.pipe()
    return (
        stack.enter_context(os.fdopen(reader, "rb", buffering=0)),
        stack.enter_context(os.fdopen(writer, "wb", buffering=0)),
    )


@contextmanager
def _message(message: dict[str, Any]) -> Iterator[IO[bytes]]:
    """A nameless file that holds one frame, for a process to read."""
    with tempfile.TemporaryFile() as file:
        write_frame(file.fileno(), message, MAX_REQUEST_BYTES)
        file.seek(0)
        yield file


@contextmanager
def _file(content: bytes) -> Iterator[IO[bytes]]:
    """A nameless file to be a program's standard input: it can be mapped, sought, and opened as /dev/stdin by any
    user, and not written."""
    with tempfile.TemporaryFile() as file:
        os.fchmod(file.fileno(), 0o444)
        file.write(content)
        file.flush()
        with open(f"/proc/self/fd/{file.fileno()}", "rb", buffering=0) as read_only:
            yield read_only


def _collect(source: IO[bytes], processes: list[Process], cpu_seconds: float) -> tuple[bytes, Status | None]:
    """Everything that comes out of `source` until its end, and why it was cut short, if it was.

    Each process's processor time is limited inside. Limited here: output, memory of a sandbox, processor time of all
    processes of the first one, and time that passes while none of them wants to compute; time that they want to compute
    and may not, on a busy machine, is forgiven for long.
    """
    pieces: list[bytes] = []
    size, idle = 0, 0.0
    started = checked = time.monotonic()
    poller = select.poll()
    poller.register(source, select.POLLIN)
    while True:
        if poller.poll(TICK_SECONDS * 1000):
            piece = os.read(source.fileno(), 1 << 16)
            if not piece:
                return b"".join(pieces), None
            pieces.append(piece)
            size += len(piece)
            if size > MAX_OUTPUT_BYTES:
                return b"".join(pieces), "output_limit"
        now = time.monotonic()
        if now - checked < TICK_SECONDS:
            continue
        if not any(process.wants_to_run() for process in processes):
            idle += min(now - checked, 2 * TICK_SECONDS)  # if more has passed, it was this process that stood still
        checked = now
        if any(process.is_over_memory() for process in processes):
            return b"".join(pieces), "memory"
        if _overran(processes[0], cpu_seconds) or _is_late(now - started, idle, cpu_seconds):
            return b"".join(pieces), "timeout"


def _overran(process: Process, cpu_seconds: float) -> Status | None:
    """The limit for all processes of a sandbox together that it passed, even if it then ended in order."""
    if process.is_over_memory():
        return "memory"
    return "timeout" if process.seconds() > MAX_PARALLEL * cpu_seconds else None


def _is_late(elapsed_seconds: float, idle_seconds: float, cpu_seconds: float) -> bool:
    return idle_seconds > IDLE_SECONDS + 2.0 * cpu_seconds or elapsed_seconds > 60.0 + 30.0 * cpu_seconds
