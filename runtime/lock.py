"""The lock of a folder: one process writes there at a time, on this machine or on another that shares the folder."""

import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HEARTBEAT_SECONDS = 10.0
PATIENCE_SECONDS = 3.0
logger = logging.getLogger(__name__)


class Lock:
    """A file that names the process that writes a folder, locked while that process lives and touched every
    HEARTBEAT_SECONDS.

    On one machine the operating system frees the lock with its process, however it ends. The file system may not carry
    a lock to another machine that shares the folder: a holder there counts as alive while the file's time changes.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run folder heartbeat", daemon=True)
        self._thread.start()
        os.register_at_fork(after_in_child=self._close)

    @classmethod
    def take(cls, path: Path) -> "Lock":
        """ValueError naming the holder when there is one; OSError when the file cannot be written.

        A killed holder may take a moment to vanish, so the lock is tried for PATIENCE_SECONDS.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            held_here = not _try_flock(descriptor)
            holder = _read_holder(descriptor)
            if held_here or _lives_elsewhere(holder, path):
                raise ValueError(
                    f"{path.parent} is being written by process {holder.get('pid', '?')} on {holder.get('host', '?')} "
                    f"since {holder.get('started', '?')}. Stop that run, or choose another experiment.project."
                )
            started = time.strftime("%Y-%m-%d %H:%M:%S")
            text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started}) + "\n"
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text.encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor)

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_SECONDS):
            try:
                os.utime(self._descriptor)
            except OSError:
                return

    def _close(self) -> None:
        """Also in a forked child, which would otherwise hold the lock after its parent's death."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def release(self) -> None:
        """Frees the lock; further calls do nothing."""
        if self._descriptor < 0:
            return
        self._stopped.set()
        self._thread.join()
        os.ftruncate(self._descriptor, 0)
        self._close()


def _try_flock(descriptor: int) -> bool:
    """False when another process keeps the lock; True also on a file system that has no locks."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        except OSError:
            return True


def _read_holder(descriptor: int) -> dict[str, Any]:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _lives_elsewhere(holder: Mapping[str, Any], path: Path) -> bool:
    """Whether the holder is on another machine and touches the file while it is watched for two heartbeats."""
    if holder.get("host") in (None, socket.gethostname()):
        return False
    before = path.stat().st_mtime_ns
    watch_seconds = 2.5 * HEARTBEAT_SECONDS
    logger.warning(
        "%s: last written on %s; watching %.0f s for a sign of life", path.parent, holder["host"], watch_seconds
    )
    deadline = time.monotonic() + watch_seconds
    while time.monotonic() < deadline:
        time.sleep(HEARTBEAT_SECONDS / 20)
        if path.stat().st_mtime_ns != before:
            return True
    return False
