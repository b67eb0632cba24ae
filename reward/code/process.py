"""A sandbox that runs: what it uses, why it ended, its end."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reward.code.cgroup import Group
from reward.code.mounts import SCRATCH, SCRATCH_BYTES

PATIENCE_SECONDS = 30.0  # for the kernel to take a dead sandbox apart
MAX_FILES = 1 << 14  # in the folders that can be written; each costs a kilobyte of the kernel's memory
KILLED = 128 + signal.SIGKILL
CPU_MARGIN = 0.7  # the kernel enforces a limit by clock ticks, which may run ahead of the time that it reports

End = Literal["memory", "timeout", "outside", "left"]


@dataclass(frozen=True)
class Watch:
    """What is known of a sandbox from outside.

    cpu_seconds: limit of each process. memory_bytes: limit of all together. group: the control group that holds them,
    if any. isolated: bubblewrap stands between, which only a signal from outside reaches. first: the program is the
    first process of its namespace, which no signal from inside kills. release: called once, when all is gone; it closes
    `ready` too.
    """

    cpu_seconds: int
    memory_bytes: int
    group: Group | None
    isolated: bool
    first: bool
    release: Callable[[], None]


class Process:
    """A process in a sandbox, with everything that it starts."""

    def __init__(self, popen: subprocess.Popen[bytes], ready: int, watch: Watch) -> None:
        self.popen, self._ready, self.watch = popen, ready, watch
        self._was_ready: bool | None = None
        self._waited_seconds = 0.0
        self._seen: dict[tuple[int, str], float] = {}

    def exit_code(self, patience_seconds: float | None) -> int | None:
        """The code it left with (128 + signal when it was killed inside), None when it still runs."""
        deadline, pause = None if patience_seconds is None else time.monotonic() + patience_seconds, 0.0005
        while self.popen.returncode is None:
            pid, status, usage = os.wait4(self.popen.pid, 0 if deadline is None else os.WNOHANG)
            if pid:
                self.popen.returncode = os.waitstatus_to_exitcode(status)
                self._waited_seconds = usage.ru_utime + usage.ru_stime
            elif deadline is not None and time.monotonic() >= deadline:
                return None
            else:
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
        code = self.popen.returncode
        return 128 - code if code < 0 else code

    def seconds(self) -> float:
        """Processor time of all its processes. Without a control group, that of children which nobody waited for
        counts as far as it was seen."""
        if self.watch.group is not None:
            return self.watch.group.seconds()
        for pid in self._all():
            with suppress(OSError, IndexError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                self._seen[pid, fields[19]] = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
        return max(sum(self._seen.values()), self._waited_seconds)

    def is_over_memory(self) -> bool:
        """Whether it holds more memory, or more files, than it may, or was killed for that."""
        group = self.watch.group
        if group is not None and group.ran_out():
            return True
        if group is None and sum(map(_resident, self._all())) > self.watch.memory_bytes:
            return True
        first = next(iter(_children(self.popen.pid)), None) if self.popen.returncode is None else None
        return first is not None and sum(_files(first, folder) for folder in SCRATCH) > MAX_FILES

    def wants_to_run(self) -> bool:
        """Whether any thread of it runs or waits for a core, now."""
        for pid in self._all():
            with suppress(OSError, IndexError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    if (task / "stat").read_text().rpartition(")")[2].split()[0] == "R":
                        return True
        return False

    def why_ended(self, patience_seconds: float) -> End:
        """outside: someone or something killed it that is neither the program nor a limit of its own."""
        code = self.exit_code(patience_seconds)
        group = self.watch.group
        if group is not None and group.ran_out():
            return "memory"
        if code == KILLED and self.seconds() > CPU_MARGIN * self.watch.cpu_seconds:
            return "timeout"
        killed = code == KILLED and (self.watch.first or (group is not None and group.lost()))
        return "outside" if killed or (self.watch.isolated and (self.popen.returncode or 0) < 0) else "left"

    def end(self) -> bool:
        """Kills what is left of it and waits until all is gone. Whether the harness inside it ever ran."""
        if self._was_ready is not None:
            return self._was_ready
        inside = _children(self.popen.pid)
        for child in inside:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        if self.exit_code(PATIENCE_SECONDS if inside else 0.0) is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, signal.SIGKILL)
        self.exit_code(None)
        os.set_blocking(self._ready, False)
        with suppress(BlockingIOError):
            self._was_ready = os.read(self._ready, 1) == b"r"
        self.watch.release()
        self._was_ready = bool(self._was_ready)
        return self._was_ready

    def _all(self) -> Iterator[int]:
        waiting = [self.popen.pid]
        while waiting:
            pid = waiting.pop()
            yield pid
            waiting += _children(pid)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):  # it may end at any moment
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as children:
                found += map(int, children.read().split())
    return found


def _resident(pid: int) -> int:
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _files(pid: int, folder: str) -> int:
    """How many files a folder to write holds; 0 where a process does not see the sandbox's own (yet)."""
    with suppress(OSError):
        place = os.statvfs(f"/proc/{pid}/root{folder}")
        if place.f_blocks * place.f_frsize == SCRATCH_BYTES:
            return place.f_files - place.f_ffree
    return 0
