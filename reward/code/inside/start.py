"""How a process inside a sandbox begins: limits that it cannot raise again, and a word to the outside that it got this
far."""

from __future__ import annotations

import _sitebuiltins
import builtins
import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def begin(settings: dict[str, Any]) -> None:
    """Takes {"ready_fd", "cpu_seconds", "memory_bytes", "file_bytes", "processes", "open_files", "path"}.

    The interpreter starts without `site`, for speed; what programs use of it is made up here.
    """
    for name, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, settings["cpu_seconds"]),
        (resource.RLIMIT_AS, settings["memory_bytes"]),
        (resource.RLIMIT_FSIZE, settings["file_bytes"]),
        (resource.RLIMIT_NPROC, settings["processes"]),
        (resource.RLIMIT_NOFILE, settings["open_files"]),
    ):
        resource.setrlimit(name, (limit, limit))
    sys.path += settings["path"]
    builtins.exit = _sitebuiltins.Quitter("exit", "")
    builtins.quit = _sitebuiltins.Quitter("quit", "")
    os.write(settings["ready_fd"], b"r")
    os.close(settings["ready_fd"])


def report(folders: list[str], files: list[str], forks: int) -> None:
    """Prints what can be seen and done from here as JSON, for the caller to judge whether the sandbox holds."""
    import json

    with open("/proc/net/dev") as interfaces:
        seen = {
            "user": os.getuid(),
            "interfaces": [line.split(":")[0].strip() for line in interfaces.readlines()[2:]],
            "processes": sum(name.isdigit() for name in os.listdir("/proc")),
            "writable": [folder for folder in folders if _is_writable(folder)],
            "readable": [file for file in files if os.path.exists(file)],
            "environment": list(os.environ),
            "forks": _forks(forks),
        }
    print(json.dumps(seen))


def _is_writable(folder: str) -> bool:
    try:
        with open(os.path.join(folder, "trial"), "w"):
            return True
    except OSError:
        return False


def _forks(wanted: int) -> int:
    import signal

    children: list[int] = []
    try:
        while len(children) < wanted:
            child = os.fork()
            if child == 0:
                signal.pause()
                os._exit(0)
            children.append(child)
    except OSError:
        pass
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return len(children)
