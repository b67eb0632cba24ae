"""A pool of processes that run one function under a hard deadline for each job.

A worker is a fresh interpreter (never a fork of the caller, and never a second run of its main module), so the pool
works from any thread, any process and any script. A worker that exceeds its deadline is killed, with all that it
started, and replaced: it costs its own job only. The deadline counts from the moment the worker picks the job up.
`cpu_seconds` is processor time, so that a busy machine gives the verdicts of a quiet one; `wall_seconds` is the
generous limit for a job that waits without computing.
"""

import json
import os
import pickle
import queue
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reward.base import RewardError
from reward.workers.process import HEADER, write_frame
from reward.workers.tree import end_descendants
from runtime.text import printable

START_SECONDS = 180.0

Status = Literal["ok", "error", "timeout", "stalled", "died"]


@dataclass(frozen=True)
class Reply:
    """status: ok (value holds the result), error (the function raised; detail holds the traceback), timeout (processor
    time used up), stalled (wall-clock limit reached), died (the process ended by itself; detail says how)."""

    status: Status
    value: Any = None
    detail: str = ""


class _Gone(Exception):
    """The worker closed its end."""


class _Late(Exception):
    """The worker did not answer in time."""


def default_workers() -> int:
    """One worker for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Worker:
    """One child process. Not thread-safe: the pool hands it to one caller at a time."""

    def __init__(self, target: str, cpu_seconds: float, memory_bytes: int) -> None:
        settings = {"target": target, "cpu_seconds": cpu_seconds, "memory_bytes": memory_bytes, "parent": os.getpid()}
        here = str(Path(__file__).resolve().parents[2])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *(path for path in sys.path if path)])}
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment.setdefault(name, "1")
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from reward.workers.process import main; main()", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=environment,
        )
        self.ready: Reply | None = None

    def wait_ready(self) -> Reply:
        """What the child said once its function was loaded; `ok` carries the function's signature."""
        if self.ready is None:
            self.ready = self._receive(START_SECONDS)
        return self.ready

    def call(self, job: bytes, wall_seconds: float) -> Reply:
        assert self.process.stdin is not None
        try:
            write_frame(self.process.stdin, job)
        except OSError:
            return self._ended()
        return self._receive(wall_seconds)

    def _receive(self, wall_seconds: float) -> Reply:
        deadline = time.monotonic() + wall_seconds
        try:
            (size,) = HEADER.unpack(self._read(HEADER.size, deadline))
            message = json.loads(self._read(size, deadline))
        except _Gone:
            return self._ended()
        except _Late:
            return Reply("stalled", detail=f"no answer after {wall_seconds:g} seconds")
        return Reply("error", detail=printable(message["error"])) if "error" in message else Reply("ok", message["ok"])

    def _read(self, size: int, deadline: float) -> bytes:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        body = b""
        while len(body) < size:
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise _Late
            piece = os.read(descriptor, size - len(body))
            if not piece:
                raise _Gone
            body += piece
        return body

    def _ended(self) -> Reply:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5.0)
        self.kill()
        code = self.process.returncode
        if code == -signal.SIGPROF:
            return Reply("timeout", detail="processor time used up")
        return Reply("died", detail=f"worker ended by signal {-code}" if code < 0 else f"worker exited with {code}")

    def kill(self) -> None:
        """Ends the process and everything it started, and reaps it."""
        if self.process.poll() is None:
            end_descendants(self.process.pid)
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()


_pools: "weakref.WeakSet[WorkerPool]" = weakref.WeakSet()


class WorkerPool:
    """`workers` processes, started when first needed, that run `target` (`package.module:name` or `file.py:name`).

    `cpu_seconds` and `memory_bytes` 0 mean no such limit. Thread-safe. A fork of the parent starts with no workers of
    its own.
    """

    def __init__(
        self, target: str, *, workers: int = 0, cpu_seconds: float = 0.0, wall_seconds: float, memory_bytes: int = 0
    ) -> None:
        self.target = target
        self.workers = workers or default_workers()
        self.cpu_seconds = cpu_seconds
        self.wall_seconds = wall_seconds
        self.memory_bytes = memory_bytes
        self._alive: set[Worker] = set()
        self._forget()
        _pools.add(self)
        weakref.finalize(self, _kill_all, self._alive)

    def _forget(self) -> None:
        self._alive.clear()
        self._idle: queue.LifoQueue[_Slot] = queue.LifoQueue()
        for _ in range(self.workers):
            self._idle.put(_Slot())

    def start(self) -> Reply:
        """Starts one worker and returns what it said: `ok` with the function's signature, or why it cannot be
        loaded."""
        with self._borrowed() as slot:
            return self._ready(slot)

    def run(self, /, *args: Any, **kwargs: Any) -> Reply:
        """One call of the function. Waits for a free worker; the deadline counts only once the worker has the job.

        RewardError when the worker cannot load the function.
        """
        job = pickle.dumps((args, kwargs))
        with self._borrowed() as slot:
            reply = self._ready(slot)
            if reply.status != "ok":
                raise RewardError(f"a worker for {self.target} cannot start: {reply.detail.rstrip()}")
            assert slot.worker is not None
            reply = slot.worker.call(job, self.wall_seconds)
            if reply.status not in ("ok", "error"):
                self._drop(slot)
            return reply

    def map(self, jobs: Iterable[tuple[Any, ...]]) -> list[Reply]:
        """One reply for each tuple of arguments, in order."""
        jobs = list(jobs)
        if len(jobs) <= 1:
            return [self.run(*job) for job in jobs]
        with ThreadPoolExecutor(min(self.workers, len(jobs)), "reward-pool") as threads:
            return list(threads.map(lambda job: self.run(*job), jobs))

    def close(self) -> None:
        """Ends every worker. The pool starts new ones if it is used again."""
        _kill_all(self._alive)

    @contextmanager
    def _borrowed(self) -> Iterator["_Slot"]:
        slot = self._idle.get()
        try:
            yield slot
        except BaseException:
            self._drop(slot)
            raise
        finally:
            self._idle.put(slot)

    def _ready(self, slot: "_Slot") -> Reply:
        if slot.worker is not None and slot.worker.process.poll() is not None:
            self._drop(slot)
        if slot.worker is None:
            slot.worker = Worker(self.target, self.cpu_seconds, self.memory_bytes)
            self._alive.add(slot.worker)
        reply = slot.worker.wait_ready()
        if reply.status != "ok":
            self._drop(slot)
        return reply

    def _drop(self, slot: "_Slot") -> None:
        if slot.worker is not None:
            slot.worker.kill()
            self._alive.discard(slot.worker)
            slot.worker = None


@dataclass
class _Slot:
    worker: Worker | None = None


def _kill_all(alive: set[Worker]) -> None:
    while alive:
        with suppress(KeyError):
            alive.pop().kill()


def _forget_in_child() -> None:
    for pool in _pools:
        pool._forget()


os.register_at_fork(after_in_child=_forget_in_child)
