"""The sandbox attacks 41-60: none is rewarded, none has an effect outside, none leaves anything behind."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from code_attacks import EXPECTED, FUNCTIONS, SCRIPTS

from reward import grade_code
from reward.code.process import _children
from reward.code.reward import CodeGrader
from reward.code.sandbox import INSTALL_HINT, find_isolation

pytestmark = pytest.mark.skipif(find_isolation() is None, reason=f"no sandbox here: {INSTALL_HINT}")

ROOT = Path(__file__).resolve().parents[2]
FAILURES = ("wrong", "error", "timeout", "memory", "output_limit")
FUNCTION_TASK = {
    "test_method": "function",
    "test_list": [f"assert f(2) == {EXPECTED}", f"assert f(3) == {EXPECTED + 1}"],
    "test_time_limit": 1,
}
STDIO_TASK = {
    "test_method": "stdio",
    "test_input": ["2\n", "3\n"],
    "test_output": [f"{EXPECTED}\n", f"{EXPECTED + 1}\n"],
    "test_time_limit": 1,
}
SLOW = ("47", "48", "49 memory", "50 ten", "50 a gig", "50 files", "51 signals", "56 reads", "58 a number")


def cases(programs):
    return [
        pytest.param(program, id=name, marks=[pytest.mark.slow] if name.startswith(SLOW) else [])
        for name, program in programs.items()
    ]


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """What an attack might reach: a port, a secret, files. Checks afterwards that nothing happened to them."""
    monkeypatch.setenv("REWARD_SECRET", "a secret of the parent")
    tmp_path.chmod(0o777)
    victim = tmp_path / "victim"
    victim.write_text(f"here; the tests expect {EXPECTED}")
    victim.chmod(0o666)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.0)
        before = leftovers()

        def prepared(program):
            for name, value in {
                "PORT": str(listener.getsockname()[1]),
                "OUTSIDE": str(tmp_path / "written"),
                "VICTIM": str(victim),
                "PYTHON": repr(os.path.realpath(sys.base_prefix)),
            }.items():
                program = program.replace(name, value)
            return program

        yield prepared
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]
    assert victim.read_text() == f"here; the tests expect {EXPECTED}"
    assert leftovers() == before


def leftovers():
    """Zombies and sandboxes of this process, anything sandboxed without a parent, and folders for temporary files."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            ours = parent == os.getpid() and (not command or b"bwrap" in command)
            if ours or (parent == 1 and b"reward.code.inside" in command):
                found.add(int(folder.name))
    return found, set(Path("/tmp").glob("reward-*"))


STATUSES = {
    "44 none": "wrong",
    "47 endless loop": "timeout",
    "47 endless loop in the function": "timeout",
    "47 endless sleep": "timeout",
    "48 fork bomb": "timeout",
    "49 memory in many processes": "memory",
    "49 ten gigabytes": "memory",
    "50 a gigabyte as a result": "memory",
    "50 too long a result": "output_limit",
    "51 signals ignored": "timeout",
    "58 a deep result": "error",
    "58 crash at import": "error",
    "58 syntax error": "error",
}
assert set(STATUSES) <= set(FUNCTIONS)


@pytest.mark.parametrize("program", cases(FUNCTIONS))
def test_function_attack(program, outside, request):
    verdict = grade_code(outside(program), FUNCTION_TASK)
    assert not verdict.passed and verdict.passed_tests == 0 and verdict.status in FAILURES, verdict
    assert verdict.status == STATUSES.get(request.node.callspec.id, verdict.status)


@pytest.mark.parametrize("program", cases(SCRIPTS))
def test_script_attack(program, outside):
    verdict = grade_code(outside(program), STDIO_TASK)
    assert not verdict.passed and verdict.passed_tests == 0 and verdict.status in FAILURES, verdict


@pytest.mark.slow
def test_47_an_endless_loop_is_stopped(outside, monkeypatch):
    monkeypatch.setattr("reward.code.run.START_CPU_SECONDS", 0.5)
    task = {**FUNCTION_TASK, "test_time_limit": 0.1}
    assert grade_code(FUNCTIONS["47 endless loop in the function"], task).status == "timeout"


def test_52_a_daemon_does_not_survive(outside):
    program = f"""
import os, time
def f(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    return {EXPECTED} + x - 2
"""
    assert grade_code(program, FUNCTION_TASK).passed


@pytest.mark.slow
def test_52_nothing_survives_a_killed_grader(outside):
    program = """
import sys
from reward import grade_code
print("started", flush=True)
grade_code("while True: pass", {"test_list": ["assert f(1)"], "test_time_limit": 600})
"""
    grader = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    grader.stdout.readline()
    running = []
    while not any(processor_seconds(pid) > 0.3 for pid in running):  # until the program itself runs
        time.sleep(0.05)
        running = descendants(grader.pid)
    grader.kill()
    grader.communicate()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in running):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_59_no_orphan_is_left_to_the_init_process():
    """In a container whose first process reaps nothing, each orphan would stay as a zombie."""
    program = """
import ctypes, os
from reward.code.reward import CodeGrader
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER: orphans come to this process
task = {"test_list": ["assert f(1) == 1"], "test_time_limit": 0.1}
scripts = {"test_input": ["1"], "test_output": ["1"]}
daemon = "import os, time\\nif os.fork() == 0:\\n    os.setsid()\\n    time.sleep(99)\\ndef f(x): return x"
jobs = [("def f(x): return x", task), (daemon, task), ("import os\\nos._exit(0)", task), ("print(input())", scripts)]
print([verdict.status for verdict in CodeGrader().grade(jobs * 3)] == ["passed", "passed", "error", "passed"] * 3)
try:
    print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("none")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True\nnone\n", "")


def processor_seconds(pid):
    """Of a process; 0 of one that has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


def descendants(pid):
    children = _children(pid)
    return children + [below for child in children for below in descendants(child)]


@pytest.mark.slow
@pytest.mark.parametrize("count", [16, pytest.param(500, marks=pytest.mark.long)])
def test_59_many_in_parallel_leave_nothing(count, outside):
    programs = [f"def f(x): return {EXPECTED} + x - 2", "def f(x): return 0", "import os\nos._exit(0)", "def f(x:"]
    verdicts = CodeGrader().grade([(program, FUNCTION_TASK) for program in programs * (count // 4)])
    assert [verdict.status for verdict in verdicts] == ["passed", "wrong", "error", "error"] * (count // 4)


@pytest.mark.slow
def test_60_honest_numpy_solutions_pass():
    pytest.importorskip("numpy")
    program = "import numpy as np\ndef f(x):\n    return np.sum(np.array([1_733_000, 421, x - 2]))\n"
    assert grade_code(program, FUNCTION_TASK).passed
    assert grade_code("import numpy\nprint(numpy.int64(input()) + 1733419)", STDIO_TASK).passed
