"""Signs of life of a job's ranks, a small file each in the run's folder: for people, for whoever watches the job, and
for the message when a rank dies or hangs."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Any

from runtime.steps import step_folders

FOLDER = "heartbeat"
INTERVAL_SECONDS = 1.0
_STARTED = datetime.now().astimezone()


class Heartbeat:
    """Keeps `folder`/heartbeat/rank-N.json: rank, process and host, step, phase, and the time of the last sign. A new
    phase is written at once, progress inside one at most every INTERVAL_SECONDS.

    Each sign is given by the work itself, so that a rank that hangs gives none. A file that cannot be written stops
    nothing.
    """

    def __init__(self, folder: Path, rank: int):
        self.step = 0
        self._path = Path(folder) / FOLDER / f"rank-{rank}.json"
        self._who = {"rank": rank, "pid": os.getpid(), "host": socket.gethostname()}
        self._phase = ""
        self._written = -INTERVAL_SECONDS

    def enter(self, phase: str) -> None:
        """The work called `phase` begins, or continues."""
        if phase == self._phase:
            self.beat()
            return
        self._phase = phase
        self._write()

    def beat(self) -> None:
        """The phase has made progress."""
        if time.monotonic() - self._written >= INTERVAL_SECONDS:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        text = json.dumps(self._who | {"step": self.step, "phase": self._phase, "time": now}) + "\n"
        aside = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(text, encoding="utf-8")
            aside.replace(self._path)


def read(folder: Path) -> dict[int, dict[str, Any]]:
    """The last sign of life of each rank of the job that last ran in `folder`."""
    found = {}
    for path in sorted((Path(folder) / FOLDER).glob("rank-*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            sign = json.loads(path.read_text(encoding="utf-8"))
            found[int(sign["rank"])] = sign
    return found


def _of_this_job(folder: Path) -> dict[int, dict[str, Any]]:
    """Signs since this process, a launcher or a rank, started: those of an earlier job are left out."""
    return {rank: sign for rank, sign in read(folder).items() if _time(sign) >= _STARTED}


def _time(sign: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(sign["time"])


def last_seen(folder: Path, ranks: Collection[int]) -> str:
    """Where these ranks gave their last sign: "rank 1 in step 7, update, 12 s ago"; empty without any."""
    signs = _of_this_job(folder)
    return "; ".join(f"rank {rank} {_place(signs[rank])}" for rank in sorted(ranks) if rank in signs)


def longest_silent(folder: Path, ranks: Collection[int]) -> int:
    """The one of these ranks whose last sign is the oldest; one that gave none comes first."""
    times = {rank: _time(sign).timestamp() for rank, sign in _of_this_job(folder).items()}
    return min(sorted(ranks), key=lambda rank: times.get(rank, 0.0))


def _place(sign: dict[str, Any]) -> str:
    ago = (datetime.now().astimezone() - _time(sign)).total_seconds()
    return f"in step {sign['step']}, {sign['phase']}, {max(0.0, ago):.0f} s ago"


def where_to_resume(folder: Path, resume: str) -> str:
    """What typing the same command again does, with experiment.resume as given: auto, never or a path."""
    folders = reversed(step_folders(Path(folder) / "ckpt"))
    newest = next((path for path in folders if (path / "trainer" / "files.json").is_file()), None)
    if newest is not None and resume == "never":
        return f"With experiment.resume=auto the same command resumes from {newest}"
    if newest is not None:
        return f"The same command resumes from {newest}"
    start = "begins anew" if resume in ("auto", "never") else f"begins with {resume} again"
    return f"{folder} has no checkpoint yet: the same command {start}"
