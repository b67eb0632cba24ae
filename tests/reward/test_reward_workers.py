import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from reward.workers.pool import WorkerPool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "jobs.py"
    path.write_text(
        textwrap.dedent("""
        import os, time

        def leaves_its_session(file):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    with open(file, "w") as out:
                        out.write(str(os.getpid()))
                    time.sleep(60)
                os._exit(0)
            while not (os.path.exists(file) and open(file).read()):
                time.sleep(0.001)

        def job(kind, value):
            if kind == "spin":
                9**9**9
            if kind == "sleep":
                time.sleep(value)
            if kind == "memory":
                bytearray(value)
            if kind == "die":
                os.kill(os.getpid(), 9)
            if kind == "pid":
                return os.getpid()
            if kind == "raise":
                raise ValueError(value)
            if kind in ("daemon", "daemon and sleep", "daemon and die"):
                leaves_its_session(value)
            if kind == "daemon and sleep":
                time.sleep(60)
            if kind == "daemon and die":
                os._exit(3)
            return value
        """)
    )
    return f"{path}:job"


@pytest.fixture
def pool(target):
    made = WorkerPool(target, workers=2, cpu_seconds=0.5, wall_seconds=2.0, memory_bytes=1 << 30)
    yield made
    made.close()


@pytest.mark.slow
def test_a_bad_job_costs_only_its_own_answer(pool):
    jobs = [("ok", i) for i in range(20)]
    jobs[3], jobs[9], jobs[12] = ("spin", 0), ("die", 0), ("memory", 2 << 30)
    replies = pool.map(jobs)
    assert [r.status for r in replies] == [{3: "timeout", 9: "died", 12: "error"}.get(i, "ok") for i in range(20)]
    assert "signal 9" in replies[9].detail and "MemoryError" in replies[12].detail
    assert [r.value for r in replies if r.status == "ok"] == [i for i in range(20) if i not in (3, 9, 12)]


@pytest.mark.slow
def test_waiting_costs_no_processor_time_but_has_a_wall_limit(pool):
    assert pool.run("sleep", 0.7).status == "ok"
    assert pool.run("sleep", 60.0).status == "stalled"


@pytest.mark.slow
def test_processor_time_counts_from_the_pick_up(pool):
    for _ in range(3):
        started = time.process_time()
        assert pool.run("sleep", 0.3).status == "ok"
        assert time.process_time() - started < 0.3


def ends(pid, seconds=10.0):
    deadline = time.monotonic() + seconds
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.01)
    return not os.path.exists(f"/proc/{pid}")


@pytest.mark.slow
def test_what_a_job_started_ends_with_its_worker_even_in_a_session_of_its_own(target, tmp_path):
    pool = WorkerPool(target, workers=1, wall_seconds=5.0)

    def daemon(kind, status):
        file = tmp_path / kind
        assert pool.run(kind, str(file)).status == status
        return int(file.read_text())

    assert ends(daemon("daemon and die", "died"))
    kept = daemon("daemon", "ok")
    assert os.path.exists(f"/proc/{kept}")
    assert pool.run("die", 0).status == "died" and ends(kept)
    pool.wall_seconds = 0.5
    pool.start()
    assert ends(daemon("daemon and sleep", "stalled"))
    (tmp_path / "daemon").unlink()
    pool.wall_seconds = 5.0
    left = daemon("daemon", "ok")
    pool.close()
    assert ends(left)


def test_a_traceback_is_shown_without_control_characters(pool):
    reply = pool.run("raise", "\x1b]0;title\x07 \x9b2J \u202e")
    assert reply.status == "error" and "ValueError" in reply.detail
    assert all(character.isprintable() or character == "\n" for character in reply.detail)


def test_many_threads_share_the_pool(pool):
    results = {}
    threads = [threading.Thread(target=lambda i=i: results.update({i: pool.run("ok", i).value})) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: i for i in range(16)}
    assert len(pool._alive) <= 2


def _in_child(pool, answers):
    answers.put((pool.run("ok", 7).value, pool.run("pid", 0).value))


def test_a_fork_uses_workers_of_its_own(pool):
    mine = pool.run("pid", 0).value
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_in_child, args=(pool, answers), daemon=True)
    child.start()
    value, theirs = answers.get(timeout=30)
    child.join(30)
    assert value == 7 and theirs != mine
    assert pool.run("ok", 8).value == 8


@pytest.mark.slow
def test_workers_end_with_their_parent(target, tmp_path):
    program = f"""
import os, sys
from reward.workers.pool import WorkerPool
pool = WorkerPool({target!r}, workers=1, wall_seconds=60)
pool.run("daemon", {str(tmp_path / "pid")!r})
print(pool.run("pid", 0).value, flush=True)
import threading
threading.Thread(target=pool.run, args=("sleep", 50), daemon=True).start()
sys.stdin.readline()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    worker = int(parent.stdout.readline())
    daemon = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.communicate()
    assert ends(worker) and ends(daemon)


@pytest.mark.slow
def test_a_target_that_cannot_be_loaded_is_an_error():
    pool = WorkerPool("reward.math.equal:no_such_name", workers=1, wall_seconds=5)
    with pytest.raises(RuntimeError, match="no_such_name"):
        pool.run(1)


@pytest.mark.slow
@pytest.mark.parametrize("how", [pytest.param("stdin", marks=pytest.mark.slow), "unguarded_script"])
def test_works_from_any_script(tmp_path, how):
    program = "from reward import grade_math\nprint(grade_math(r'\\boxed{\\frac{1}{2}}', '0.5'))\n"
    script = tmp_path / "script.py"
    script.write_text(program)
    command = [sys.executable, "-"] if how == "stdin" else [sys.executable, str(script)]
    done = subprocess.run(
        command,
        input=program if how == "stdin" else None,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
