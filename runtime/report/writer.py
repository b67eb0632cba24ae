"""report.html and curves.png while the run goes: another process, of low priority, writes them when asked.

`python -m runtime.report.writer FOLDER` writes once for each line on its input, and ends with it: at "stop", or when
the run is gone, after a last time.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).resolve().parents[2]
EVERY_SECONDS = 10.0
SHARE = 0.05
"""Of its time that the process may spend writing: a long run's report is written less often."""
_GO, _STOP = b"\n", b"stop\n"
_NICENESS, _STOP_SECONDS = 10, 10.0


class ReportWriter:
    """Keeps the report of a run in `folder` up to date: at most every EVERY_SECONDS, and at the end. What fails is
    warned about once; nothing of it stops the run. A step pays for a look at the clock, and now and then for a byte
    into a pipe."""

    def __init__(self, folder: Path, warn: Callable[[str], Any]) -> None:
        self._folder, self._warn = Path(folder), warn
        self._told = time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def soon(self) -> None:
        """Something new is there to be shown."""
        if time.monotonic() - self._told < EVERY_SECONDS:
            return
        self._told = time.monotonic()
        with contextlib.suppress(OSError):  # the report of the end is written by this process
            if self._process is None:
                self._process = _start(self._folder)
            assert self._process.stdin is not None
            os.write(self._process.stdin.fileno(), _GO)

    def close(self) -> None:
        """Writes the report as it is at the end."""
        if self._closed:
            return
        self._closed = True
        self._stop()
        if not any((self._folder / name).is_file() for name in ("metrics.jsonl", "results.json")):
            return
        try:
            from runtime.report.page import write_report

            write_report(self._folder)
        except Exception as error:  # a report is worth no run
            self._warn(f"report.html was not written: {type(error).__name__}: {error}")

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            process.communicate(_STOP, timeout=_STOP_SECONDS)
            return
        process.kill()
        process.wait()


def _start(folder: Path) -> "subprocess.Popen[bytes]":
    """The process: without GPUs, and out of reach of the terminal's Ctrl-C, which is the run's."""
    quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "runtime.report.writer", str(folder.absolute())],
        cwd=ROOT,
        env={**os.environ, **quiet},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    return process


def follow(folder: Path, orders: BinaryIO) -> None:
    """Writes when a line comes, unless it spends more than SHARE of its time on that; ends with the lines."""
    from runtime import curves
    from runtime.files import read_jsonl
    from runtime.report.page import write_report

    rests_until = 0.0
    while (order := orders.readline()) != _STOP:
        began = time.monotonic()
        if began < rests_until and order:
            continue
        with contextlib.suppress(Exception):  # half of a line, a full disk: the next time, or the end, is another try
            write_report(folder)
            curves.draw(list(read_jsonl(folder / "metrics.jsonl")), folder / "curves.png", folder.name)
        if not order:
            return
        rests_until = time.monotonic() + (time.monotonic() - began) / SHARE


if __name__ == "__main__":
    os.nice(_NICENESS)
    follow(Path(sys.argv[1]), sys.stdin.buffer)
