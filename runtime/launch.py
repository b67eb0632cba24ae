"""Starts the ranks of a job on this machine, watches them, and ends them together.

A rank is this same command with RANK, WORLD_SIZE and the address of a store in its environment.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from runtime import heartbeat
from runtime.child import LAUNCHER_VARIABLE, STOPPED_ELSEWHERE
from runtime.job_key import KEY_VARIABLE
from runtime.nodes import Node
from runtime.rendezvous import BEAT_SECONDS, LostNode, OneMachine, RendezvousConfig, meet
from runtime.text import print_error

GRACE_SECONDS = 5.0


def launch(processes: int, node: Node, settings: RendezvousConfig, folder: Path, resume: str) -> int:
    """Runs `processes` ranks of this command here, and waits for them. Other nodes run theirs. The exit status: 0 when
    all ended well, 128 + N when signal N asked to stop, else that of the rank that failed. That one is named with its
    last sign of life, which the run's `folder` has, and with what the same command would resume from (`resume` as in
    its config). Stopped when a signal came before the ranks began; ValueError as `meet`."""
    rendezvous = meet(node, processes, settings, folder)
    ranks = _Ranks(rendezvous, processes, folder, resume)
    handlers = {number: signal.signal(number, ranks.on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        rendezvous.check_stopping()
        ranks.start()
        status = ranks.watch()
    finally:
        ranks.end()
        rendezvous.leave()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return status


class _Ranks:
    """The child processes of this node, by rank."""

    def __init__(self, rendezvous: OneMachine, processes: int, folder: Path, resume: str):
        self.folder, self.resume = folder, resume
        self.rendezvous, self.node, self.processes = rendezvous, rendezvous.node, processes
        self.children: dict[int, subprocess.Popen[bytes]] = {}
        self.ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.signalled: int | None = None
        self.passed_on: set[int] = set()

    def start(self) -> None:
        node, common = self.node, dict(os.environ)
        common.pop(KEY_VARIABLE, None)  # the launchers' secret
        for local in range(self.processes):
            rank = node.index * self.processes + local
            store = self.rendezvous.rank_store.of_rank(rank)
            place = {
                "RANK": str(rank),
                "LOCAL_RANK": str(local),
                "WORLD_SIZE": str(node.count * self.processes),
                "LOCAL_WORLD_SIZE": str(self.processes),
                LAUNCHER_VARIABLE: str(os.getpid()),
            }
            child = subprocess.Popen(
                [sys.executable, *sys.argv],
                env={**common, **place, **store.environment},
                pass_fds=store.descriptors,
                start_new_session=True,
            )
            self.children[rank] = child
            threading.Thread(target=self._wait, args=(rank, child), daemon=True).start()
        self.rendezvous.rank_store.close()

    def _wait(self, rank: int, child: subprocess.Popen[bytes]) -> None:
        child.wait()
        self.ended.put(rank)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Passes a request to stop on; the second one ends the ranks at once."""
        again, self.signalled = self.signalled is not None, number
        passed_on = signal.SIGKILL if again else number
        self.passed_on.add(passed_on)
        self._send(passed_on)

    def watch(self) -> int:
        """Until all ranks have ended, or one has failed anywhere."""
        left = set(self.children)
        while left:
            try:
                self.rendezvous.check()
            except LostNode as error:
                return self._lost(error)
            try:
                rank = self.ended.get(timeout=0.2)
            except queue.Empty:
                continue
            left.discard(rank)
            code = self.children[rank].returncode
            if code - 128 in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
                self.signalled = code - 128  # the ranks agreed on it: all of them end so
            elif code != 0 and not self._is_asked_for(code):
                return self._failed(rank)
        return 0 if self.signalled is None else 128 + self.signalled

    def _is_asked_for(self, code: int) -> bool:
        """Whether a request to stop, rather than a failure, can end a rank so: by the agreement of all, or by a signal
        that was passed on."""
        return self.signalled is not None and (code == STOPPED_ELSEWHERE or -code in self.passed_on)

    def _lost(self, error: LostNode) -> int:
        self.rendezvous.fail(str(error))
        print_error(f"the job stops: {error}. {heartbeat.where_to_resume(self.folder, self.resume)}")
        return 1

    def _failed_elsewhere(self, seconds: float) -> LostNode | None:
        """Another node's message about a failure, if one comes within `seconds`."""
        deadline = time.monotonic() + seconds
        while self.node.count > 1 and time.monotonic() < deadline:
            try:
                self.rendezvous.check()
            except LostNode as error:
                return error
            time.sleep(0.1)
        return None

    def _failed(self, first: int) -> int:
        """The status of the rank that failed by itself, of those that ended in the same moment. Where all of those
        gave up waiting, they waited for one that still runs: the only one, or the one that was silent longest."""
        started, ended = time.monotonic(), [first]
        while self.children[ended[-1]].returncode == STOPPED_ELSEWHERE:
            if time.monotonic() - started > (GRACE_SECONDS if len(self._running()) > 1 else 1.0):
                break
            try:
                ended.append(self.ended.get(timeout=0.1))
            except queue.Empty:
                continue
        codes = {rank: self.children[rank].returncode for rank in ended}
        rank = next((r for r in ended if codes[r] not in (0, STOPPED_ELSEWHERE)), first)
        code = codes[rank]
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        if code == STOPPED_ELSEWHERE:
            hanging = self._running()
            if elsewhere := self._failed_elsewhere((1.5 if hanging else 4.0) * BEAT_SECONDS):
                return self._lost(elsewhere)
            if hanging:
                rank = heartbeat.longest_silent(self.folder, hanging)
                how = "hangs: the others waited for it in vain"
        seen = heartbeat.last_seen(self.folder, [rank]) if code != 2 else ""
        why = f"rank {rank} of {self.node.count * self.processes} on {self.node} {how}"
        why += f" (last sign of life: {seen})" if seen else ""
        self.rendezvous.fail(why)
        again = "" if code == 2 else f". {heartbeat.where_to_resume(self.folder, self.resume)}"
        print_error(f"{why}; the job stops{again}")
        return 128 - code if code < 0 else code

    def _running(self) -> list[int]:
        return [rank for rank, child in self.children.items() if child.poll() is None]

    def end(self) -> None:
        """Ends what still runs: SIGTERM first, then SIGKILL."""
        self._send(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        for child in self.children.values():
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _send(self, number: int) -> None:
        for rank in self._running():
            self.children[rank].send_signal(number)
