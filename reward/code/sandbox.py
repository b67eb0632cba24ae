"""Runs untrusted Python in a bubblewrap sandbox.

Covered: no network, no view of other processes, a read-only root with the interpreter and system libraries only, a
private tmpfs, an empty environment, an unprivileged user, limits on processor time, memory, files and processes, and
the end of every process of the sandbox when the first one ends or the caller kills it. Not covered: bugs of the kernel,
and what a program can learn from how fast it runs. Without bubblewrap there is no isolation, only the limits.
"""

import base64
import functools
import json
import marshal
import os
import re
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import types
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

ROOT = Path(__file__).resolve().parents[2]
SCRATCH_BYTES = 64 << 20
PATIENCE_SECONDS = 30.0  # for the kernel to take a dead sandbox apart
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

    name: what the start banner shows. python: the interpreter inside. user: "own" for one of its own for each slot
    (only root can give that), "nobody", or "same" for the caller's. mounts_as_root: bubblewrap keeps root's rights
    until the root is built.
    """

    name: str
    python: str
    user: Literal["own", "nobody", "same"] = "same"
    mounts_as_root: bool = False
    isolated: bool = True

    def command(self, slot: int) -> list[str]:
        """What to run, up to and including the interpreter.

        With --as-pid-1 bubblewrap waits for its child; otherwise it leaves an orphan for the init process to reap.
        --die-with-parent reaches only processes of bubblewrap's own user: where that is another one than the program's,
        a shell that is left as it is waits for the program.
        """
        if not self.isolated:
            return [self.python]
        user = str(NOBODY if self.user == "nobody" else FIRST_USER + (os.getpid() % 4096) * 4096 + slot)
        drop = [_tool("setpriv"), "--reuid", user, "--regid", user, "--clear-groups"]
        bwrap = [_tool("bwrap"), "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
        bwrap += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--as-pid-1", *mounts(self.python)]
        if self.mounts_as_root:
            bwrap += [word for name in ("SETUID", "SETGID", "SETPCAP") for word in ("--cap-add", f"CAP_{name}")]
            shell = ["/bin/sh", "-c", '"$@"; exit $?', "sh"]
            return [*bwrap, *shell, *drop, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all", self.python]
        return [*([] if self.user == "same" else drop), *bwrap, "--unshare-user", "--cap-drop", "ALL", self.python]


NO_ISOLATION = Isolation("none: limits only", os.path.realpath(sys.executable), isolated=False)


def candidates() -> list[Isolation]:
    """Ways to isolate on this machine, best first; which of them work is another question."""
    python = os.path.realpath(sys.executable)
    if not shutil.which("bwrap"):
        return []
    if os.geteuid() != 0:
        return [Isolation("bubblewrap", python)]
    if not shutil.which("setpriv"):
        return []
    ways = [Isolation("bubblewrap, a user of its own for each sandbox", python, "own", mounts_as_root=True)]
    ways += [Isolation("bubblewrap as nobody", python, "nobody", mounts_as_root=True)]
    return ways + [Isolation("bubblewrap as nobody", path, "nobody") for path in (python, "/usr/bin/python3")]


@functools.cache
def find_isolation() -> Isolation | None:
    """The best isolation that was seen to hold on this machine, or None. Looks once a process."""
    return next((way for way in candidates() if not leaks(way)), None)


def leaks(isolation: Isolation) -> list[str]:
    """What a trial run inside found open, or that it did not start; empty when the sandbox holds."""
    folders = ["/", "/usr", "/dev", "/dev/shm", "/tmp", "/var/tmp", sys.base_prefix, str(ROOT), "/scratch"]
    packages = package_folders(isolation.python)
    files = [str(Path(__file__)), str(ROOT / "rl.py"), "/etc/shadow", "/etc/hostname", *packages]
    forks = 2 * Limits().processes
    with tempfile.TemporaryFile() as report:
        call = ["start", "report", folders, files, forks]
        process = start(isolation, 0, Limits(), call, stdin=subprocess.DEVNULL, stdout=report)
        try:
            code = process.exit_code(30.0)
        finally:
            process.end()
        report.seek(0)
        try:
            seen = json.loads(report.read())
        except ValueError:
            return [f"did not start (exit code {code})"]
    found = {
        "root user": seen["user"] == 0,
        "network": seen["interfaces"] not in ([], ["lo"]),
        "other processes": seen["processes"] > 4,
        "writable folders": seen["writable"] != ["/scratch"],
        "environment": not set(seen["environment"]) <= {*ENVIRONMENT, "PWD", "LC_CTYPE", "OLDPWD", "SHLVL", "_"},
        "files of the host": set(seen["readable"]) != set(packages),
        "processes without limit": seen["forks"] >= forks,
    }
    return [name for name, is_open in found.items() if is_open]


@functools.cache
def _tool(name: str) -> str:
    return shutil.which(name) or name


@functools.cache
def mounts(python: str) -> list[str]:
    """bubblewrap's words for the root: system libraries, interpreter and packages to read, a small folder to write."""
    words = ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    visible = visible_folders(python)
    private = [str(folder) for folder in {ROOT, Path.cwd().resolve()} if any(_is_inside(folder, v) for v in visible)]
    for folder in sorted({*visible, *private}):
        words += [word for parent in reversed(Path(folder).parents[:-1]) for word in ("--dir", str(parent))]
        words += ["--tmpfs", folder] if folder in private else ["--ro-bind", folder, folder]
    for link in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        words += ["--symlink", os.readlink(link), link] if os.path.islink(link) else ["--ro-bind-try", link, link]
    for file in ("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime"):
        words += ["--ro-bind-try", file, file]
    words += [word for folder in private for word in ("--remount-ro", folder)]
    words += ["--perms", "1777", "--size", str(SCRATCH_BYTES), "--tmpfs", "/scratch", "--chdir", "/scratch"]
    return [*words, "--remount-ro", "/"]


def visible_folders(python: str) -> list[str]:
    """What a program can read: /usr, the interpreter's installation, the installed packages."""
    folders = {"/usr", *package_folders(python)}
    if not python.startswith("/usr/"):
        folders.add(os.path.realpath(sys.base_prefix))
    return sorted(folders)


def _is_inside(folder: Path, outer: str) -> bool:
    return str(folder) != outer and folder.is_relative_to(outer)


@functools.cache
def package_folders(python: str) -> list[str]:
    """The folders of installed packages that `python` can use."""
    if python != os.path.realpath(sys.executable):
        return [folder for folder in ("/usr/lib/python3/dist-packages",) if os.path.isdir(folder)]
    folders = [os.path.realpath(folder) for folder in (*site.getsitepackages(), site.getusersitepackages())]
    return [folder for folder in folders if os.path.isdir(folder)]


class Process:
    """A process in a sandbox, with everything that it starts."""

    def __init__(
        self, popen: subprocess.Popen[bytes], ready: int, scratch: tempfile.TemporaryDirectory[str] | None
    ) -> None:
        self.popen, self._ready, self._scratch = popen, ready, scratch
        self._was_ready: bool | None = None

    def exit_code(self, patience_seconds: float) -> int | None:
        """The code it left with (128 + signal when it was killed inside), None when it still runs."""
        with suppress(subprocess.TimeoutExpired):
            code = self.popen.wait(patience_seconds)
            return 128 - code if code < 0 else code
        return None

    def usage(self) -> tuple[float, int]:
        """Processor seconds and bytes of memory of all its processes."""
        return _usage(self.popen.pid)

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
        self.popen.wait()
        os.set_blocking(self._ready, False)
        with suppress(BlockingIOError):
            self._was_ready = os.read(self._ready, 1) == b"r"
        os.close(self._ready)
        if self._scratch is not None:
            self._scratch.cleanup()
        self._was_ready = bool(self._was_ready)
        return self._was_ready


def start(
    isolation: Isolation,
    slot: int,
    limits: Limits,
    call: list[Any],
    *,
    stdin: int | IO[bytes],
    stdout: int | IO[bytes],
    pass_fds: Sequence[int] = (),
) -> Process:
    """Starts `call` ([module, function, *arguments] of reward.code.inside) in a sandbox. `slot` tells apart what runs
    at once."""
    ready, ready_inside = os.pipe()
    scratch = None if isolation.isolated else tempfile.TemporaryDirectory(prefix="reward-", ignore_cleanup_errors=True)
    settings = {**vars(limits), "ready_fd": ready_inside, "path": package_folders(isolation.python)}
    try:
        popen = subprocess.Popen(
            [*isolation.command(slot), *PYTHON_FLAGS, "-c", _bootstrap(isolation.python, settings, call)],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            pass_fds=(ready_inside, *pass_fds),
            env=ENVIRONMENT,
            cwd=scratch.name if scratch else "/",
            start_new_session=True,
        )
    except BaseException:
        os.close(ready)
        if scratch:
            scratch.cleanup()
        raise
    finally:
        os.close(ready_inside)
    return Process(popen, ready, scratch)


def _bootstrap(python: str, settings: dict[str, Any], call: list[Any]) -> str:
    """The program that takes the place of a script: no file of this project has to be visible inside."""
    return f"""{_modules(python, call[0])}
sys.modules["reward.code.inside.start"].begin({settings!r})
sys.modules["reward.code.inside.{call[0]}"].{call[1]}(*{call[2:]!r})
"""


@functools.cache
def _modules(python: str, module: str) -> str:
    """Source that makes the modules of reward.code.inside which `module` needs; compiled already for this same
    interpreter. It crosses as one command-line argument, which may have 128 KiB."""
    sources = _sources(("start", module))
    made = f"[(name, compile(text, name, 'exec')) for name, text in {sources!r}.items()]"
    if python == os.path.realpath(sys.executable):
        codes = [(name, _bare(compile(text, name, "exec", optimize=2))) for name, text in sources.items()]
        packed = base64.b64encode(zlib.compress(marshal.dumps(codes), 9))
        made = f"marshal.loads(zlib.decompress(binascii.a2b_base64({packed!r})))"
    return f"""
import binascii, marshal, sys, zlib
module = type(sys)
for name in ("reward", "reward.code", "reward.code.inside"):
    sys.modules[name] = module(name)
for name, code in {made}:
    made = sys.modules["reward.code.inside." + name] = module("reward.code.inside." + name)
    exec(code, made.__dict__)
"""


def _bare(code: types.CodeType) -> types.CodeType:
    """Code without the places of its lines, which take half of its size."""
    inner = tuple(_bare(item) if isinstance(item, types.CodeType) else item for item in code.co_consts)
    return code.replace(co_linetable=b"", co_consts=inner)


def _sources(names: Iterable[str]) -> dict[str, str]:
    """The source of modules of reward.code.inside, each after those that it imports."""
    found: dict[str, str] = {}
    for name in names:
        text = (ROOT / "reward" / "code" / "inside" / f"{name}.py").read_text()
        needed = re.findall(r"^from reward\.code\.inside\.(\w+) import", text, re.MULTILINE)
        found |= {**_sources(needed), name: text}
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):  # it may end at any moment
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found


def _usage(pid: int) -> tuple[float, int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0, 0
    seconds = sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    memory = resident * os.sysconf("SC_PAGE_SIZE")
    for child in _children(pid):
        more_seconds, more_memory = _usage(child)
        seconds, memory = seconds + more_seconds, memory + more_memory
    return seconds, memory
