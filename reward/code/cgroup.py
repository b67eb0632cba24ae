"""Memory and processor time of a sandbox as the kernel counts them, in control groups, where this process may make
some.

A group holds every process of a sandbox from its first instruction on, and counts what no process of it shows: memory
of files, pipes and sockets, and the time of children that nobody waited for. Groups are kept and used again: one that
is removed stays in the kernel for as long as a page of a shared library is charged to it.
"""

import atexit
import functools
import os
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PREFIX = "reward"
PEAK = "memory.max_usage_in_bytes"


@dataclass(frozen=True)
class Hierarchy:
    """Where groups can be made: the folder for memory, the one for processor time (the same in version 2)."""

    memory: Path
    cpu: Path
    version: int


class Group:
    """A control group of this process's own, for one sandbox at a time."""

    def __init__(self, hierarchy: Hierarchy, number: int) -> None:
        name = f"{PREFIX}-{os.getpid()}-{number}"
        self.version = hierarchy.version
        self.memory, self.cpu = hierarchy.memory / name, hierarchy.cpu / name
        self._files: dict[str, str] = {}  # by name: a path is slower to make than its file to read
        self._limit = 0
        self._seconds, self._kills, self._hits = 0.0, 0, 0

    def prepare(self, memory_bytes: int) -> list[str]:
        """Empties the counts and sets the limit; gives the files that take the number of a process to hold."""
        if any([_make(folder) for folder in {self.memory, self.cpu}]) or memory_bytes != self._limit:
            self._set_limit(memory_bytes)
        self._seconds = 0.0
        self._seconds, self._kills = self.seconds(), self._kills_ever()
        if self.version == 2:
            self._hits = self._field("memory.events", "oom")
        else:
            with open(self.memory / PEAK, "w") as file:
                file.write("0")
        return [str(folder / "cgroup.procs") for folder in sorted({self.memory, self.cpu})]

    def _set_limit(self, memory_bytes: int) -> None:
        names = ("memory.max",) if self.version == 2 else ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
        for name in names * 2:  # of the two, neither may pass the other: twice sets both, whichever way they go
            with suppress(OSError):
                (self.memory / name).write_text(str(memory_bytes))
        more = {"memory.swap.max": 0} if self.version == 2 else {"memory.kmem.tcp.limit_in_bytes": memory_bytes}
        for name, value in more.items():
            with suppress(OSError):
                (self.memory / name).write_text(str(value))
        given = (self.memory / names[0]).read_text().strip()
        if not given.isdigit() or int(given) > memory_bytes:
            raise OSError(f"{self.memory / names[0]} is {given}, not {memory_bytes}")
        self._limit = memory_bytes

    def seconds(self) -> float:
        """Processor time of all that it held since `prepare`."""
        if self.version == 2:
            return self._field("cpu.stat", "usage_usec") / 1e6 - self._seconds
        return int(self._read("cpuacct.usage")) / 1e9 - self._seconds

    def ran_out(self) -> bool:
        """Whether the kernel killed a process of it because the group was at its limit."""
        if self.version == 2:
            return self._field("memory.events", "oom") > self._hits
        return self.lost() and int(self._read(PEAK)) > 0.95 * self._limit

    def lost(self) -> bool:
        """Whether the kernel killed a process of it for want of memory, here or on the whole machine."""
        return self._kills_ever() > self._kills

    def _kills_ever(self) -> int:
        return self._field("memory.events" if self.version == 2 else "memory.oom_control", "oom_kill")

    def _field(self, file: str, name: str) -> int:
        fields = dict(line.split() for line in self._read(file).splitlines())
        return int(fields[name])

    def _read(self, name: str) -> str:
        if name not in self._files:
            self._files[name] = str((self.memory if name.startswith("memory") else self.cpu) / name)
        with open(self._files[name]) as file:
            return file.read()

    def remove(self) -> None:
        for folder in {self.memory, self.cpu}:
            with suppress(OSError):
                folder.rmdir()


def _make(folder: Path) -> bool:
    try:
        os.mkdir(folder)
    except FileExistsError:
        return False
    return True


@functools.cache
def find_hierarchy() -> Hierarchy | None:
    """Where this process can make groups that were seen to work, or None. Looks once a process."""
    with suppress(OSError, ValueError, KeyError):
        for hierarchy in _candidates(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()):
            _remove_left_over(hierarchy)
            if _works(hierarchy):
                atexit.register(_remove_left_over, hierarchy, os.getpid())
                return hierarchy
    return None


def _candidates(membership: str, mount_table: str) -> list[Hierarchy]:
    """Hierarchies to try, from /proc/self/cgroup and /proc/self/mountinfo: version 1, then the nearest folder of
    version 2 that hands its children the memory controller."""
    own = {}
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    folders: dict[str, Path] = {}
    for line in mount_table.splitlines():
        mount, _, source = line.partition(" - ")
        root, place = mount.split()[3:5]
        kind, _, options = source.split(maxsplit=2)
        for controller in [""] if kind == "cgroup2" else options.split(",") if kind == "cgroup" else []:
            if own.get(controller, "").startswith(root):
                folders[controller] = Path(place) / own[controller][len(root) :].lstrip("/")
    found = []
    if "memory" in folders and "cpuacct" in folders:
        found.append(Hierarchy(folders["memory"], folders["cpuacct"], 1))
    if "" in folders:
        for folder in (folders[""], *folders[""].parents):
            control = folder / "cgroup.subtree_control"
            if control.is_file() and "memory" in control.read_text().split():
                return [*found, Hierarchy(folder, folder, 2)]
    return found


def _works(hierarchy: Hierarchy) -> bool:
    group = Group(hierarchy, -1)
    try:
        files = group.prepare(1 << 30)
        return subprocess.run(["/bin/sh", "-c", enter(files) + ":"], stderr=subprocess.DEVNULL).returncode == 0
    except (OSError, ValueError, KeyError):
        return False
    finally:
        group.remove()


def enter(files: Sequence[str]) -> str:
    """Shell text that puts the shell into a group."""
    return "".join(f"echo $$ > {shlex.quote(file)} && " for file in files)


def _remove_left_over(hierarchy: Hierarchy, owner: int | None = None) -> None:
    """Removes the groups of a process, or of all that have ended. One that holds a process stays."""
    for folder in {hierarchy.memory, hierarchy.cpu}:
        for group in folder.glob(f"{PREFIX}-*-*"):
            pid = group.name.split("-")[1]
            if pid == str(owner) if owner else not os.path.exists(f"/proc/{pid}"):
                with suppress(OSError):
                    group.rmdir()
