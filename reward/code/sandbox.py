"""Runs untrusted Python in a bubblewrap sandbox.

Covered: no network, no view of other processes, a read-only root with the interpreter and shared libraries only, two
private folders in memory, an empty environment, an unprivileged user without namespaces or keyrings to share with
others, limits on processor time, memory, files and processes, and the end of every process of the sandbox when the
first one ends or the caller kills it. Not covered: bugs of the kernel, and what a program can learn from how fast it
runs. What this machine cannot give is named in `Isolation.gaps`. Without bubblewrap there is no isolation, only the
limits.
"""

import ctypes
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from reward.code.bootstrap import bootstrap
from reward.code.cgroup import Group, enter, find_hierarchy
from reward.code.filter import filter_program
from reward.code.mounts import ROOT, SCRATCH, mounts, mounts_of_view, open_view, package_folders
from reward.code.process import Process, Watch

FIRST_USER = 1 << 30
NOBODY = 65534
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/scratch",
    "TMPDIR": "/scratch",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
PYTHON_FLAGS = ("-s", "-S", "-P", "-B")  # no site: it costs more than all else
INSTALL_HINT = "install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap)"
KEYCTL = {"x86_64": 250, "aarch64": 219}.get(os.uname().machine, 0)  # the system call's number; C libraries have none
GET_KEYRING_ID, SESSION_KEYRING = 0, -3


@dataclass(frozen=True)
class Limits:
    """cpu_seconds is processor time of each process; memory_bytes of address space of each, and of memory of all
    together."""

    cpu_seconds: int = 5
    memory_bytes: int = 2 << 30
    file_bytes: int = 32 << 20
    processes: int = 32
    open_files: int = 128


@dataclass(frozen=True)
class Isolation:
    """One way to start a sandboxed process.

    name: what the start banner shows. python: the interpreter inside. user: "own" for one of its own for each sandbox
    (only root can give that), "nobody", or "same" for the caller's. user_namespace: the sandbox has one of its own, and
    with it keyrings of its own; otherwise bubblewrap keeps root's rights until the root is built. filtered, grouped:
    system calls are filtered, and memory and time counted by control groups, where this machine can. gaps: what was
    seen not to hold, and what cannot be bounded here.
    """

    name: str
    python: str
    user: Literal["own", "nobody", "same"] = "same"
    user_namespace: bool = True
    isolated: bool = True
    filtered: bool = True
    grouped: bool = True
    gaps: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join([self.name, *self.gaps])

    def command(self, number: int, limits: Limits, files: Sequence[str] = (), seccomp: int | None = None) -> list[str]:
        """What to run, up to and including the interpreter, in sandbox `number` of this process.

        A shell puts itself into the control groups of `files` and sets the limit of processor time, then gives way.
        With --as-pid-1 bubblewrap waits for its child; otherwise it leaves an orphan for the init process to reap.
        """
        if not self.isolated:
            return [self.python]
        begin = ["/bin/sh", "-c", f'{enter(files)}ulimit -t {limits.cpu_seconds} && exec "$@"', "sh"]
        bwrap = [_tool("bwrap"), "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
        bwrap += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--as-pid-1"]
        bwrap += [] if seccomp is None else ["--seccomp", str(seccomp)]
        if not self.user_namespace:
            return [*begin, *bwrap, *self._drop_inside(self._user(number))]
        bwrap += ["--unshare-user", *(["--disable-userns"] if _knows("--disable-userns") else []), "--cap-drop", "ALL"]
        if self.user == "same":
            return [*begin, *bwrap, *mounts(self.python), self.python]
        view = f"--mount=/proc/{os.getpid()}/fd/{open_view(self.python)}"
        drop = [_tool("nsenter"), view, "--setuid", self._user(number), "--setgid", self._user(number)]
        return [*begin, *drop, *bwrap, *mounts_of_view(self.python), self.python]

    def _user(self, number: int) -> str:
        return str(NOBODY if self.user == "nobody" else FIRST_USER + (os.getpid() % 4096) * 4096 + number)

    def _drop_inside(self, user: str) -> list[str]:
        """--die-with-parent reaches only processes of bubblewrap's own user: a shell that is left as it is waits for
        the program."""
        setpriv = os.path.realpath(_tool("setpriv"))
        words = [word for name in ("SETUID", "SETGID", "SETPCAP") for word in ("--cap-add", f"CAP_{name}")]
        words += [*mounts(self.python, setpriv), "/bin/sh", "-c", '"$@"; exit $?', "sh", setpriv, "--reuid", user]
        words += ["--regid", user, "--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
        return [*words, self.python]


NO_ISOLATION = Isolation(
    "none: limits only", os.path.realpath(sys.executable), isolated=False, filtered=False, grouped=False
)


def candidates() -> list[Isolation]:
    """Ways to isolate on this machine, best first; which of them work is another question."""
    python = os.path.realpath(sys.executable)
    if not shutil.which("bwrap"):
        return []
    if os.geteuid() != 0:
        return [Isolation("bubblewrap", python)]
    if not (shutil.which("setpriv") and shutil.which("nsenter")):
        return []
    own = Isolation("bubblewrap, a user of its own for each sandbox", python, "own")
    nobody = Isolation("bubblewrap as nobody", python, "nobody")
    ways = [replace(way, user_namespace=namespace) for way in (own, nobody) for namespace in (True, False)]
    return [*ways, replace(nobody, python=os.path.realpath("/usr/bin/python3"))]


@functools.cache
def find_isolation() -> Isolation | None:
    """The best isolation that was seen to hold on this machine, or None. Looks once a process."""
    best: Isolation | None = None
    for way in candidates():
        open_doors, gaps = try_out(way)
        if not open_doors and (best is None or len(gaps) < len(best.gaps)):
            best = replace(way, gaps=tuple(gaps))
        if best is not None and not set(best.gaps) & {NESTED, KEYRINGS}:
            break
    return best


NESTED = "a program can make user namespaces"
KEYRINGS = "kernel keyrings can be shared"
UNCOUNTED = "memory outside of processes and time of short-lived children are not counted (no control group)"
UNFILTERED = "system calls are not filtered (no libseccomp)"


def try_out(isolation: Isolation) -> tuple[list[str], list[str]]:
    """What a trial run inside found open of what every sandbox must hold, or that it did not start; and what is weaker
    than it could be."""
    folders = ["/", "/usr", "/dev", "/tmp", "/var/tmp", "/run", sys.base_prefix, str(ROOT), *SCRATCH]
    packages = package_folders(isolation.python)
    files = [str(Path(__file__)), str(ROOT / "rl.py"), "/etc/shadow", "/etc/hostname", "/usr/share/doc", *packages]
    forks = 2 * Limits().processes
    with tempfile.TemporaryFile() as report:
        call = ["start", "report", folders, files, forks, KEYCTL]
        try:
            process = start(isolation, Limits(), call, stdin=subprocess.DEVNULL, stdout=report)
        except OSError as error:
            return [f"did not start ({error})"], []
        try:
            code = process.exit_code(30.0)
        finally:
            process.end()
        report.seek(0)
        try:
            seen = json.loads(report.read())
        except ValueError:
            return [f"did not start (exit code {code})"], []
    found = {
        "root user": seen["user"] == 0,
        "network": seen["interfaces"] not in ([], ["lo"]),
        "other processes": seen["processes"] > 4,
        "writable folders": sorted(seen["writable"]) != sorted(SCRATCH),
        "environment": not set(seen["environment"]) <= {*ENVIRONMENT, "PWD", "LC_CTYPE", "OLDPWD", "SHLVL", "_"},
        "files of the host": set(seen["readable"]) != set(packages),
        "processes without limit": seen["forks"] >= forks,
    }
    shares_users = seen["user_namespace"] == os.readlink("/proc/self/ns/user")
    session = seen["session_keyring"]
    weaker = {
        NESTED: seen["nested"],
        KEYRINGS: session > 0 and (shares_users or session == _session_keyring()),
        UNCOUNTED: not (isolation.grouped and find_hierarchy()),
        UNFILTERED: not (isolation.filtered and filter_program()),
    }
    return [name for name, is_open in found.items() if is_open], [name for name, is_open in weaker.items() if is_open]


def _session_keyring() -> int:
    return ctypes.CDLL(None).syscall(KEYCTL, GET_KEYRING_ID, SESSION_KEYRING, 0) if KEYCTL else 0


@functools.cache
def _tool(name: str) -> str:
    return shutil.which(name) or name


@functools.cache
def _knows(option: str) -> bool:
    """Whether this bubblewrap has an option (--disable-userns: since 0.8)."""
    return option in subprocess.run([_tool("bwrap"), "--help"], capture_output=True, text=True).stdout


class _Numbers:
    """Numbers of the sandboxes that run in this process: each is a user and a control group that no other one has
    meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: set[int] = set()
        self._groups: dict[int, Group] = {}
        self._owner = os.getpid()

    def take(self) -> int:
        with self._lock:
            if self._owner != os.getpid():  # a fork: the parent's sandboxes are none of its own
                self._taken, self._groups, self._owner = set(), {}, os.getpid()
            number = next(number for number in itertools.count() if number not in self._taken)
            self._taken.add(number)
            return number

    def group(self, number: int) -> Group | None:
        """Its control group, None where this machine gives none."""
        if number not in self._groups and (hierarchy := find_hierarchy()):
            self._groups[number] = Group(hierarchy, number)
        return self._groups.get(number)

    def give_back(self, number: int) -> None:
        with self._lock:
            self._taken.discard(number)


_numbers = _Numbers()


def start(
    isolation: Isolation,
    limits: Limits,
    call: list[Any],
    *,
    stdin: int | IO[bytes],
    stdout: int | IO[bytes],
    pass_fds: Sequence[int] = (),
) -> Process:
    """Starts `call` ([module, function, *arguments] of reward.code.inside) in a sandbox. OSError where that fails."""
    with ExitStack() as undo, ExitStack() as passed:
        number = _numbers.take()
        undo.callback(_numbers.give_back, number)
        group = _numbers.group(number) if isolation.grouped else None
        files = group.prepare(limits.memory_bytes) if group is not None else []
        folder = "/"
        if not isolation.isolated:
            scratch = tempfile.TemporaryDirectory(prefix="reward-", ignore_cleanup_errors=True)
            folder = undo.enter_context(scratch)
        ready, ready_inside = os.pipe()
        passed.callback(os.close, ready_inside)
        undo.callback(os.close, ready)
        inside, seccomp = [ready_inside, *pass_fds], None
        settings = {**vars(limits), "ready_fd": ready_inside, "path": package_folders(isolation.python)}
        inside, seccomp = [ready_inside, *pass_fds], None
        if isolation.filtered and (program := filter_program(isolation.user_namespace)):
            seccomp = passed.enter_context(_pipe_of(program))
            inside.append(seccomp)
        settings |= {"limit_cpu": not isolation.isolated, "keyctl": KEYCTL if isolation.isolated and not seccomp else 0}
        source, modules = bootstrap(isolation.python, settings, call)
        inside.append(modules)
        command = isolation.command(number, limits, files, seccomp)
        popen = subprocess.Popen(
            [*command, *PYTHON_FLAGS, "-c", source],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            pass_fds=inside,
            env=ENVIRONMENT,
            cwd=folder,
            start_new_session=True,
        )
        first = isolation.isolated and isolation.user_namespace
        release = undo.pop_all().close
        return Process(
            popen, ready, Watch(limits.cpu_seconds, limits.memory_bytes, group, isolation.isolated, first, release)
        )


@contextmanager
def _pipe_of(content: bytes) -> Iterator[int]:
    """A descriptor to read `content` from, which is less than a pipe holds."""
    reader, writer = os.pipe()
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(content)
        yield reader
    finally:
        os.close(reader)
