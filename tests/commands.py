"""Commands that run beside a test: started in their own session, killed at a time-out, and what they leave over."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def without_job():
    """This process's environment, outside of any job that it may be in."""
    return {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def start(arguments, program=(sys.executable,), stderr=subprocess.PIPE, **environment):
    """program and arguments from the repository's root, outside of any job that this process may be in."""
    return subprocess.Popen(
        [*program, *map(str, arguments)],
        cwd=ROOT,
        env=without_job() | environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


def finish(process, timeout=60):
    """Exit status, and the text of each of its pipes."""
    try:
        texts = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        texts = process.communicate()
        pytest.fail(f"still running after {timeout} s:\n{texts}")
    return process.returncode, *(text for text in texts if text is not None)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ranks_of(launcher):
    """Process ids of the ranks that a launcher's id has started and that live."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"DLLM_RL_LAUNCHER={launcher}\0".encode() in place.read_bytes():
                found.append(int(place.parent.name))
        except OSError:
            continue
    return [pid for pid in found if alive(pid)]


def gone_in(pids, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(map(alive, pids)):
        time.sleep(0.1)
    return not any(map(alive, pids))
