"""One program in its sandboxes: three ways to run it, and what each makes of what came out."""

import math
import os
import secrets
import select
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any

from reward.code.inside.plain import MAX_REQUEST_BYTES, frames, write_frame
from reward.code.inside.script import MEMORY_CODE
from reward.code.plan import Plan
from reward.code.sandbox import Isolation, Limits, Process, start
from reward.code.verdict import CodeTests, Status, Verdict

START_CPU_SECONDS = 2
TESTS_CPU_SECONDS = 20
MAX_OUTPUT_BYTES = 8 << 20
MAX_TIMEOUTS = 5
MAX_PARALLEL = 2.0  # times one process's limit of processor time, for all processes of a program together
TICK_SECONDS = 0.25
EXIT_SECONDS = 1.0
TIMEOUT_CODE = 128 + 9  # SIGKILL at the limit of processor time


@dataclass(frozen=True)
class Room:
    """Where a program runs: a way to isolate, a slot that nothing else uses meanwhile, a limit of memory."""

    isolation: Isolation
    slot: int
    memory_bytes: int

    @contextmanager
    def process(self, place: int, cpu_seconds: float, call: list[Any], **streams: Any) -> Iterator[Process]:
        limits = Limits(cpu_seconds=math.ceil(cpu_seconds), memory_bytes=self.memory_bytes)
        process = start(self.isolation, 2 * self.slot + place, limits, call, **streams)
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
        program = stack.enter_context(
            room.process(0, cpu_seconds, ["program", "serve"], stdin=calls, stdout=answers_in)
        )
        judge = stack.enter_context(
            room.process(
                1,
                cpu_seconds + TESTS_CPU_SECONDS,
                ["tests", "run_tests", calls_in.fileno(), answers.fileno()],
                stdin=request,
                stdout=verdicts_in,
                pass_fds=(calls_in.fileno(), answers.fileno()),
            )
        )
        for end in (calls, calls_in, answers, answers_in, verdicts_in):
            end.close()
        output, stopped = _collect(verdicts, [program, judge], cpu_seconds, room.memory_bytes)
        unfinished, gone = (stopped or _why_ended(process) for process in (judge, program))
        if not (judge.end() and program.end()):
            return Verdict(False, "infra_error", 0, len(tests.tests), "a sandbox did not start")
    return _judged(frames(output), len(tests.tests), gone, unfinished)


def _why_ended(process: Process) -> Status:
    return "timeout" if process.exit_code(EXIT_SECONDS) == TIMEOUT_CODE else "error"


def _judged(messages: list[dict[str, Any]], total: int, gone: Status, unfinished: Status) -> Verdict:
    """The verdict from what the tests' side told. gone: why the program left, unfinished: why the tests were not
    finished."""
    statuses: list[Any] = [unfinished] * total
    details: dict[int, str] = {}
    for message in messages:
        if "test" not in message:
            continue
        status = gone if message["status"] == "gone" else message["status"]
        where = range(total) if message["test"] < 0 else range(message["test"], message["test"] + 1)
        for index in where:
            statuses[index], details[index] = status, message["detail"]
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
        statuses.append(_run_case(room, code, given, expected, tests.time_limit_seconds + START_CPU_SECONDS))
        if statuses[-1] == "infra_error":
            return Verdict(False, "infra_error", 0, len(tests.tests), "a sandbox did not start")
    return _verdict(statuses, {})


def _run_case(room: Room, code: str, given: str, expected: str, cpu_seconds: float) -> Status:
    with ExitStack() as stack:
        output_end, output_in = _pipe(stack)
        program = stack.enter_context(_message({"program": code}))
        stdin = stack.enter_context(_file(given.encode("utf-8", "surrogatepass")))
        call = ["script", "run_script", program.fileno()]
        process = stack.enter_context(
            room.process(0, cpu_seconds, call, stdin=stdin, stdout=output_in, pass_fds=[program.fileno()])
        )
        output_in.close()
        output, stopped = _collect(output_end, [process], cpu_seconds, room.memory_bytes)
        code_left = None if stopped else process.exit_code(EXIT_SECONDS)
        if not process.end():
            return "infra_error"
    if stopped:
        return stopped
    if code_left == TIMEOUT_CODE:
        return "timeout"
    if code_left != 0:
        return "memory" if code_left == MEMORY_CODE else "error"
    return "passed" if output.decode("utf-8", "replace").split() == expected.split() else "wrong"


def run_together(room: Room, code: str, tests: CodeTests) -> Verdict:
    """Forgeable: program and tests in one interpreter; a test passed when a secret comes out after its last line."""
    cpu_seconds = tests.time_limit_seconds + START_CPU_SECONDS
    nonce = secrets.token_hex(16)
    source = code if code.startswith(tests.prefix) else f"{tests.prefix}\n{code}"
    with ExitStack() as stack:
        results, results_in = _pipe(stack)
        request = stack.enter_context(_message({"program": source, "tests": tests.tests, "nonce": nonce}))
        process = stack.enter_context(
            room.process(0, cpu_seconds, ["script", "run_joint"], stdin=request, stdout=results_in)
        )
        results_in.close()
        output, stopped = _collect(results, [process], cpu_seconds, room.memory_bytes)
        failed: Status = stopped or ("timeout" if process.exit_code(EXIT_SECONDS) == TIMEOUT_CODE else "wrong")
        if not process.end():
            return Verdict(False, "infra_error", 0, len(tests.tests), "a sandbox did not start")
    proven = [told["test"] for told in frames(output) if isinstance(told, dict) and told.get("nonce") == nonce]
    return _verdict(["passed" if index in proven else failed for index in range(len(tests.tests))], {})


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
    user."""
    with tempfile.TemporaryFile() as file:
        os.fchmod(file.fileno(), 0o444)
        file.write(content)
        file.flush()
        file.seek(0)
        yield file


def _collect(
    source: IO[bytes], processes: list[Process], cpu_seconds: float, memory_bytes: int
) -> tuple[bytes, Status | None]:
    """Everything that comes out of `source` until its end, and why it was cut short, if it was.

    Each process's processor time is limited inside. Limited here: output, memory of all processes of a sandbox,
    processor time of all of the first one, and time that passes while they compute next to nothing; time that they
    want to compute and may not, on a busy machine, is forgiven for long.
    """
    pieces: list[bytes] = []
    size = 0
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
        checked = now
        usage = [process.usage() for process in processes]
        if max(memory for _, memory in usage) > memory_bytes:
            return b"".join(pieces), "memory"
        used = [seconds for seconds, _ in usage]
        if used[0] > MAX_PARALLEL * cpu_seconds or _is_late(now - started, sum(used), cpu_seconds):
            return b"".join(pieces), "timeout"


def _is_late(elapsed_seconds: float, used_seconds: float, cpu_seconds: float) -> bool:
    idle = elapsed_seconds > 5.0 + 2.0 * cpu_seconds and used_seconds < 0.01 * elapsed_seconds
    return idle or elapsed_seconds > 60.0 + 30.0 * cpu_seconds
