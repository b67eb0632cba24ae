"""Code rewards: a program against its task's tests, in sandboxes.

Function tests run in two sandboxes. One holds the program, the other the tests; the program's functions are stand-ins
there, calls and results cross as plain data, and a pass is what the tests' side saw. The program never shares a process
with a test, an expected value or a verdict, so there is nothing in its reach to forge. Tests on standard input run the
program once a case, and its output is compared outside.
"""

import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache, partial
from typing import Any

from reward.base import Reward, column
from reward.code.extract import extract_code
from reward.code.plan import plan_tests
from reward.code.run import Room, run_apart, run_script, run_together
from reward.code.sandbox import INSTALL_HINT, NO_ISOLATION, Isolation, Limits, find_isolation
from reward.code.ungradable import Ungradable
from reward.code.verdict import CodeTests, Verdict
from reward.workers.pool import default_workers

LEFT_OUT = ("infra_error", "ungradable")
ATTEMPTS = 3


class CodeGrader:
    """Grades programs, at most `workers` at a time (0 = one a core, and never more than cores).

    allow_unsafe: without bubblewrap run anyway, with limits but no isolation. allow_forgeable: tests that cannot be
    split run in one interpreter with the program, which could forge their result. ValueError where there is no
    isolation.
    """

    def __init__(
        self,
        *,
        workers: int = 0,
        allow_unsafe: bool = False,
        allow_forgeable: bool = False,
        memory_bytes: int = Limits.memory_bytes,
    ) -> None:
        self.isolation = require_isolation(allow_unsafe)
        self.allow_forgeable = allow_forgeable
        self.memory_bytes = memory_bytes
        self.workers = min(workers or default_workers(), default_workers())
        self._free = threading.BoundedSemaphore(self.workers)

    def grade(self, jobs: Sequence[tuple[str | None, Mapping[str, Any]]]) -> list[Verdict]:
        """One verdict for each (program, task), in order. ValueError for a task that is not in the schema."""
        pairs = [(code, CodeTests.of(task)) for code, task in jobs]
        if len(pairs) <= 1:
            return [self._grade(code, tests) for code, tests in pairs]
        with ThreadPoolExecutor(min(self.workers, len(pairs)), "reward-code") as threads:
            return list(threads.map(lambda pair: self._grade(*pair), pairs))

    def _grade(self, code: str | None, tests: CodeTests) -> Verdict:
        total = len(tests.tests)
        if code is None or not code.strip():
            return Verdict(False, "no_code", 0, total)
        if tests.method == "stdio":
            attempt = partial(self._run, run_script, code, tests)
        else:
            try:
                plan = plan_tests(tests.tests, tests.prefix)
                attempt = partial(self._run, run_apart, code, tests, plan)
            except Ungradable as error:
                if not self.allow_forgeable:
                    return Verdict(False, "ungradable", 0, total, str(error))
                attempt = partial(self._run, run_together, code, tests)
        for number in range(ATTEMPTS):
            verdict = attempt()
            if verdict.status != "infra_error":
                break
            time.sleep(0.2 * 2**number)
        if verdict.status == "ungradable" and self.allow_forgeable:
            return self._run(run_together, code, tests)
        return verdict

    def _run(self, run: Callable[..., Verdict], *arguments: Any) -> Verdict:
        with self._free:
            try:
                return run(Room(self.isolation, self.memory_bytes), *arguments)
            except OSError as error:
                return Verdict(False, "infra_error", 0, 0, str(error))


def require_isolation(allow_unsafe: bool) -> Isolation:
    """What isolates on this machine. ValueError where nothing does, unless `allow_unsafe`, which warns."""
    isolation = find_isolation()
    if isolation is not None:
        return isolation
    if not allow_unsafe:
        raise ValueError(
            f"code rewards run programs of the model, and nothing isolates them here; {INSTALL_HINT}, "
            "or accept the risk with execute.allow_unsafe=true"
        )
    warnings.warn(
        "execute.allow_unsafe: programs of the model run WITHOUT isolation, with this user's files and network; "
        + INSTALL_HINT,
        RuntimeWarning,
        stacklevel=3,
    )
    return NO_ISOLATION


_default_lock = threading.Lock()


@cache
def _default_grader(allow_unsafe: bool, allow_forgeable: bool) -> CodeGrader:
    return CodeGrader(allow_unsafe=allow_unsafe, allow_forgeable=allow_forgeable)


def grade_code(
    code: str | None, task: Mapping[str, Any], *, allow_unsafe: bool = False, allow_forgeable: bool = False
) -> Verdict:
    """Runs `code`, the whole program, against the tests of `task` (dLLM-RL's schema).

    ValueError for a task that is not in the schema, and where programs cannot be isolated.
    """
    with _default_lock:
        grader = _default_grader(allow_unsafe, allow_forgeable)
    (verdict,) = grader.grade([(code, task)])
    return verdict


def _needed_names(task: Mapping[str, Any]) -> list[str]:
    """What the tests of a task use of the program; nothing where they cannot be read, or are cases of input."""
    tests = CodeTests.of(task)
    return _entries(tuple(tests.tests), tests.prefix) if tests.method != "stdio" else []


@lru_cache(1024)
def _entries(tests: tuple[str, ...], prefix: str) -> list[str]:
    try:
        return plan_tests(list(tests), prefix).entries
    except Ungradable:
        return []


class CodeReward(Reward):
    """The share of a task's tests that the completion's program passes, or with `all_or_nothing` 1.0 for all and else
    0.0.

    None where the tests could not be run (infra_error, ungradable): that is never a 0. stats: one count for each
    status.
    """

    def __init__(self, grader: CodeGrader, *, all_or_nothing: bool = False) -> None:
        super().__init__()
        self.grader = grader
        self.all_or_nothing = all_or_nothing

    def check(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for number, row in enumerate(rows, 1):
            try:
                CodeTests.of(row)
            except ValueError as error:
                raise ValueError(f"task {row.get('task_id', row.get('id', number))}: {error}") from None

    def score(self, prompts: list[str], completions: list[str], columns: dict[str, list[Any]]) -> list[float | None]:
        if "test_input" not in columns:
            column(columns, "test_list", len(completions), needed_by="the code reward")
        tasks = [{name: values[i] for name, values in columns.items()} for i in range(len(completions))]
        codes = [
            extract_code(completion, task.get("prefix") or "", _needed_names(task))
            for completion, task in zip(completions, tasks, strict=True)
        ]
        verdicts = self.grader.grade(list(zip(codes, tasks, strict=True)))
        self.counts.update(f"code_{verdict.status}" for verdict in verdicts)
        return [self._value(verdict) for verdict in verdicts]

    def _value(self, verdict: Verdict) -> float | None:
        if verdict.status in LEFT_OUT:
            return None
        return float(verdict.passed) if self.all_or_nothing else verdict.passed_tests / verdict.total_tests
