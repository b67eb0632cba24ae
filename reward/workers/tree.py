"""Everything that a process started, ended with it: also what has left its session, or whose parent has gone.

`supervise` stands between a worker and whoever started it. As a subreaper it inherits the orphans of the worker, so
that for as long as it lives all of them are its descendants.
"""

import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # sys/prctl.h
LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 10.0


def supervise(serve: Callable[[], None], parent: int) -> None:
    """Runs `serve` in a fork and never returns: once that one or `parent` has ended, ends what is left of it, then
    leaves as it left."""
    control = ctypes.CDLL(None).prctl
    control(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # so that sigtimedwait sees it
    supervisor, child = os.getpid(), os.fork()
    if child == 0:
        control(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        if os.getppid() == supervisor:
            serve()
        return
    for descriptor in (0, 1):
        os.close(descriptor)  # the worker's; whoever reads them sees when it ends
    status = None
    while status is None and os.getppid() == parent:
        signal.sigtimedwait([signal.SIGCHLD], LOOK_SECONDS)
        status = _reap().get(child)
    end_descendants(os.getpid())
    _leave_like(status)


def end_descendants(pid: int) -> None:
    """Kills every descendant of a process. They are stopped first: what is stopped starts nothing more."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    stopped: set[int] = set()
    while new := set(descendants(pid)) - stopped:
        for descendant in new:
            _signal(descendant, signal.SIGSTOP)
        stopped |= new
    while (left := descendants(pid)) and time.monotonic() < deadline:
        for descendant in left:
            _signal(descendant, signal.SIGKILL)
        if pid == os.getpid():
            _reap()
        time.sleep(0.001)


def descendants(pid: int) -> list[int]:
    """All that a process started and that still runs, theirs included."""
    found, waiting = [], [pid]
    while waiting:
        with suppress(OSError):  # it may end at any moment
            for children in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
                waiting += (running := [child for child in map(int, children.read_text().split()) if _runs(child)])
                found += running
    return found


def _runs(pid: int) -> bool:
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _reap() -> dict[int, int]:
    """The wait status of every child that has ended."""
    ended: dict[int, int] = {}
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
    return ended


def _leave_like(status: int | None) -> None:
    if status is not None and os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(1 if status is None else os.WEXITSTATUS(status))
