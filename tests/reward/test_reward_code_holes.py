"""What the sandbox must not leave open, and what it must not blame a program for."""

import ctypes
import json
import os
import platform
import select
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from code_holes import DRIBBLE, EXCUSES, KERNEL, MEMORY, REACH, STOPPED, TIME

from reward.code import run
from reward.code.cgroup import Group, find_hierarchy
from reward.code.filter import INSTALL_HINT as FILTER_HINT
from reward.code.filter import filter_program
from reward.code.process import _children
from reward.code.reward import CodeGrader, CodeReward
from reward.code.sandbox import FIRST_USER, INSTALL_HINT, KEYCTL, NESTED, UNFILTERED, find_isolation

pytestmark = [
    pytest.mark.skipif(find_isolation() is None, reason=f"no sandbox here: {INSTALL_HINT}"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the programs call the kernel by x86-64's numbers"),
]
needs_filter = pytest.mark.skipif(filter_program() is None, reason=f"no filter of system calls: {FILTER_HINT}")
needs_groups = pytest.mark.skipif(find_hierarchy() is None, reason="no control groups can be made here")
filtered_or_not = pytest.mark.parametrize(
    "filtered", [pytest.param(True, id="filtered", marks=pytest.mark.long), pytest.param(False, id="unfiltered")]
)
LINES = Path(__file__).parents[1] / "golden" / "field" / "attacks.jsonl"
OF_THE_TESTS_SIDE = ("A01", "A05")  # test_reward_code_field.py has them
ATTACKS = [line for line in map(json.loads, LINES.read_text().splitlines()) if line["id"].startswith("A")]
FAILURES = ("wrong", "error", "timeout", "memory", "output_limit")
SMALL_BYTES = 256 << 20
HOLE = {"test_input": [""], "test_output": ["HOLE"], "test_time_limit": 4}
CLOSED = {**HOLE, "test_output": ["no"]}


def grader(**changes):
    """One that isolates as this machine can, but for `changes`."""
    made = CodeGrader(memory_bytes=changes.pop("memory_bytes", 2 << 30))
    made.isolation = replace(made.isolation, **changes)
    return made


def graded(program, task, **changes):
    (verdict,) = grader(**changes).grade([(program, task)])
    return verdict


@pytest.fixture
def nothing_left():
    """No process, mount, segment or control group in use stays."""

    def seen():
        groups = find_hierarchy()
        return (
            Path("/proc/self/mountinfo").read_text(),
            Path("/proc/sysvipc/shm").read_text(),
            _tree(os.getpid()),
            "".join(file.read_text() for file in groups.memory.glob(f"reward-{os.getpid()}-*/cgroup.procs"))
            if groups
            else "",
        )

    before = seen()
    yield
    assert seen() == before


@pytest.fixture
def no_key_left():
    had_keys = _key_users()
    yield
    deadline = time.monotonic() + 10
    while left := _key_users() - had_keys:  # the kernel takes them apart at its leisure
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _tree(pid):
    return {child: _tree(child) for child in _children(pid)}


def _key_users():
    lines = Path("/proc/key-users").read_text().splitlines() if os.path.exists("/proc/key-users") else []
    return {user for user in (int(line.split(":")[0]) for line in lines) if user >= FIRST_USER}


MARKS = {"A47": pytest.mark.long, "A49": pytest.mark.slow, "A50": pytest.mark.slow, "A70": needs_filter}


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(
            line,
            id=f"{line['id']} {line['kind']}",
            marks=MARKS.get(line["id"], ()),
        )
        for line in ATTACKS
        if line["id"] not in OF_THE_TESTS_SIDE
    ],
)
def test_attacks_from_the_field_do_not_pass(line, a_key_of_the_caller, nothing_left):
    verdict = graded(line["program"], line["task"])
    assert not verdict.passed and verdict.status in FAILURES, verdict


@pytest.fixture
def a_key_of_the_caller():
    """Keys in this process's session keyring, which a new one holds meanwhile."""
    libc = ctypes.CDLL(None)
    assert libc.syscall(KEYCTL, 1, None) > 0
    for name in (b"chaos:secret", b"holes:secret"):
        text = b"keyring-secret"
        assert libc.syscall(248, b"user", name, text, len(text), -3) > 0
    yield
    libc.syscall(KEYCTL, 1, None)


@pytest.mark.slow
@filtered_or_not
def test_nothing_outside_is_in_reach(filtered, a_key_of_the_caller, nothing_left):
    data = Path("/usr/local/share/holes_data")
    with suppress(OSError):
        data.write_text("42")
    try:
        programs = [REACH[name].replace("DATA", str(data)).replace("{rings}", "-3") for name in REACH]
        verdicts = grader(filtered=filtered).grade([(program, CLOSED) for program in programs])
    finally:
        data.unlink(missing_ok=True)
    assert {name: verdict.status for name, verdict in zip(REACH, verdicts, strict=True)} == dict.fromkeys(
        REACH, "passed"
    )


@pytest.mark.slow
@filtered_or_not
def test_no_key_goes_from_one_program_to_the_next(filtered, nothing_left, no_key_left):
    alone = grader(filtered=filtered)
    for ring in (-3, -4, -5):  # session, user, user session
        program = REACH["a key for the next one"].replace("{rings}", str(ring))
        assert [
            verdict.status
            for verdict in alone.grade([(program, {**CLOSED, "test_input": ["", ""], "test_output": ["no", "no"]})])
        ] == ["passed"]


@needs_filter
def test_the_kernels_rarer_doors_are_shut():
    assert graded(KERNEL, CLOSED).passed


def test_gaps_are_named():
    assert NESTED not in find_isolation().gaps
    assert (UNFILTERED in find_isolation().gaps) == (filter_program() is None)


# Memory

BOUNDED_BY_GROUPS = ("files without", "shared memory", "buffers of", "messages", "attributes")


@pytest.mark.slow
@filtered_or_not
@pytest.mark.parametrize("name", MEMORY)
def test_memory_of_every_kind_is_bounded(name, filtered, nothing_left):
    if name.startswith(BOUNDED_BY_GROUPS) and find_hierarchy() is None:
        pytest.skip("without a control group this memory is not counted")
    verdict = graded(MEMORY[name], HOLE, filtered=filtered, memory_bytes=SMALL_BYTES)
    assert not verdict.passed and verdict.status in FAILURES, verdict


# Time


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(run, "START_CPU_SECONDS", 1.0)
    return {**HOLE, "test_time_limit": 0.2}


@needs_groups
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name.startswith("children that") else pytest.mark.long)
        for name in TIME
    ],
)
def test_hidden_processor_time_counts(name, short, nothing_left):
    assert graded(TIME[name], short).status == "timeout"


@pytest.mark.long
@pytest.mark.parametrize("name", ["children that nobody waits for", "children of children", "threads"])
def test_without_groups_processor_time_counts_as_far_as_it_is_seen(name, short, nothing_left):
    assert graded(TIME[name], short, grouped=False).status == "timeout"


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(DRIBBLE, id="2% of a core", marks=pytest.mark.slow),
        pytest.param(STOPPED, id="stopped", marks=pytest.mark.long),
    ],
)
def test_a_place_is_not_kept_by_sleeping(program, monkeypatch, nothing_left):
    monkeypatch.setattr(run, "IDLE_SECONDS", -2.0)
    started = time.monotonic()
    assert graded(program, {**HOLE, "test_time_limit": 0.1}).status == "timeout"
    assert time.monotonic() - started < 10


# Killed from outside


@pytest.fixture
def killing(monkeypatch):
    """killing(module, choose, times): the first `times` sandboxes that run `module` are killed as soon as they do, by a
    SIGKILL to the process that `choose` picks of each."""

    def killing(module, choose, times=99):
        start, left = run.start, [None] * times

        def start_and_kill(isolation, limits, call, **streams):
            process = start(isolation, limits, call, **streams)
            if call[0] == module and left:
                left.pop()
                threads.append(threading.Thread(target=kill, args=(process,)))
                threads[-1].start()
            return process

        def kill(process):
            select.select([process._ready], [], [], 20)
            with suppress(ProcessLookupError, IndexError):
                os.kill(choose(process), signal.SIGKILL)

        monkeypatch.setattr(run, "start", start_and_kill)

    threads = []
    monkeypatch.setattr("reward.code.reward.ATTEMPTS", 2)
    yield killing
    for thread in threads:
        thread.join()


SLEEPS = {"test_list": ["assert f(1) == 1"]}
PROGRAM = "import time\ndef f(x):\n    time.sleep(3)\n    return x"
FIRST = {"its first process": lambda p: _children(p.popen.pid)[0], "bubblewrap": lambda p: p.popen.pid}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "who"),
    [
        ("its first process", "tests"),
        pytest.param("its first process", "program", marks=pytest.mark.slow),
        pytest.param("bubblewrap", "tests", marks=pytest.mark.slow),
        pytest.param("bubblewrap", "program", marks=pytest.mark.slow),
    ],
)
def test_a_sandbox_killed_from_outside_is_no_fault_of_the_program(what, who, killing, nothing_left):
    killing(who, FIRST[what])
    (verdict,) = grader().grade([(PROGRAM, SLEEPS)])
    assert (verdict.status, verdict.detail) == ("infra_error", "a sandbox was killed from outside")


@pytest.mark.slow
def test_a_script_killed_from_outside_is_left_out(killing, nothing_left):
    killing("script", FIRST["its first process"])
    rewards = CodeReward(grader())(
        ["p"], ["```python\nimport time\ntime.sleep(3)\n```"], test_input=[["1"]], test_output=[["1"]]
    )
    assert rewards == [None]


@pytest.mark.slow
def test_one_that_was_killed_once_is_graded_again(killing):
    killing("program", FIRST["its first process"], times=1)
    assert graded(PROGRAM.replace("3", "0.8"), SLEEPS).passed


@pytest.mark.slow
@needs_groups
def test_the_machine_out_of_memory_is_told_from_the_sandbox_out_of_memory(killing, monkeypatch):
    killing("program", lambda process: _children(_children(process.popen.pid)[0])[0])
    for own, status in ((True, "memory"), (False, "infra_error")):
        monkeypatch.setattr(Group, "lost", lambda group: True)
        monkeypatch.setattr(Group, "ran_out", lambda group, own=own: own)
        assert graded(PROGRAM, SLEEPS, user_namespace=False).status == status  # the program is not the first


@pytest.mark.slow
@needs_filter
@pytest.mark.parametrize("name", EXCUSES)
def test_a_program_cannot_pass_for_one_that_was_killed(name, nothing_left):
    verdict = graded(EXCUSES[name], HOLE)
    assert verdict.status in ("error", "wrong", "timeout"), verdict
