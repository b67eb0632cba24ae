"""How a process inside a sandbox begins: limits that it cannot raise again, and a word to the outside that it got this
far."""

from __future__ import annotations

import _sitebuiltins
import builtins
import posix
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_GET_KEYRING_ID, _JOIN_SESSION_KEYRING, _SESSION_KEYRING = 0, 1, -3
_CLONE_NEWUSER = 0x10000000


def begin(settings: dict[str, Any]) -> None:
    """Takes {"ready_fd", "limit_cpu", "cpu_seconds", "memory_bytes", "file_bytes", "processes", "open_files", "path",
    "keyctl"}; keyctl: the number of that system call where the caller's session keyring is to be left, else 0.

    The interpreter starts without `site`, for speed; what programs use of it is made up here. So it does without `os`.
    """
    if settings["keyctl"]:
        _leave_keyring(settings["keyctl"])
    if settings["limit_cpu"]:
        resource.setrlimit(resource.RLIMIT_CPU, (settings["cpu_seconds"], settings["cpu_seconds"]))
    for name, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, settings["memory_bytes"]),
        (resource.RLIMIT_FSIZE, settings["file_bytes"]),
        (resource.RLIMIT_NPROC, settings["processes"]),
        (resource.RLIMIT_NOFILE, settings["open_files"]),
    ):
        resource.setrlimit(name, (limit, limit))
    sys.path += settings["path"]
    builtins.exit = _sitebuiltins.Quitter("exit", "")
    builtins.quit = _sitebuiltins.Quitter("quit", "")
    posix.write(settings["ready_fd"], b"r")
    posix.close(settings["ready_fd"])


def _leave_keyring(keyctl: int) -> None:
    """A session keyring of its own in place of the caller's. Goes without a word where that fails: the trial run sees
    whether it worked."""
    try:
        import _ctypes  # what ctypes is made of; ctypes itself takes as long to import as half the interpreter to start

        call = _ctypes.dlsym(_ctypes.dlopen(None, 0), "syscall")  # type: ignore[arg-type]
        _ctypes.call_function(call, (keyctl, _JOIN_SESSION_KEYRING, 0))
    except (ImportError, AttributeError, OSError):
        pass


def report(folders: list[str], files: list[str], forks: int, keyctl: int) -> None:
    """Prints what can be seen and done from here as JSON, for the caller to judge whether the sandbox holds."""
    import ctypes
    import json
    import os

    system_call = ctypes.CDLL(None).syscall
    with open("/proc/net/dev") as interfaces:
        seen = {
            "user": os.getuid(),
            "interfaces": [line.split(":")[0].strip() for line in interfaces.readlines()[2:]],
            "processes": sum(name.isdigit() for name in os.listdir("/proc")),
            "writable": [folder for folder in folders if _is_writable(folder)],
            "readable": [file for file in files if os.path.exists(file)],
            "environment": list(os.environ),
            "forks": _forks(forks),
            "user_namespace": os.readlink("/proc/self/ns/user"),
            "session_keyring": system_call(keyctl, _GET_KEYRING_ID, _SESSION_KEYRING, 0) if keyctl else 0,
            "nested": ctypes.CDLL(None).unshare(_CLONE_NEWUSER) == 0,
        }
    print(json.dumps(seen))


def _is_writable(folder: str) -> bool:
    try:
        with open(f"{folder}/trial", "w"):
            return True
    except OSError:
        return False


def _forks(wanted: int) -> int:
    import signal

    children: list[int] = []
    try:
        while len(children) < wanted:
            child = posix.fork()
            if child == 0:
                signal.pause()
                posix._exit(0)
            children.append(child)
    except OSError:
        pass
    for child in children:
        posix.kill(child, signal.SIGKILL)
        posix.waitpid(child, 0)
    return len(children)
