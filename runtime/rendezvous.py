"""Rendezvous of the launchers of a job's nodes, their heartbeats, and the end of the job. Nothing here imports torch.

What torch's elastic launcher (torchrun; torch 2.13, files of torch/distributed/) does instead, and why it is not used:

- a launcher killed by SIGKILL leaves its ranks behind, in sessions of their own without a parent-death signal
  (elastic/multiprocessing/subprocess_handler/subprocess_handler.py, `_popen`); here the kernel ends them (`child`);
- ranks that agree on a stop save and end with 143 one after another; there the first of them counts as a failure and
  the others are signalled again while they save (elastic/multiprocessing/api.py, `SubprocessContext._poll`), which a
  rank takes for the second request, that ends at once; the job's status is then 1;
- of ranks that wait for a hanging one, the first that gives up is reported as the cause, after the hanging one was
  killed without a name (same place); here the one that hangs is named, with the phase of its last sign of life;
- its store listens on all addresses, for one machine and for an endpoint of 127.0.0.1 too, without a key
  (elastic/rendezvous/static_tcp_rendezvous.py, `next_rendezvous`; c10d_rendezvous_backend.py, `_create_tcp_store`);
- a rank's failure on one node ends the other nodes only when their own ranks fail, by their time-outs;
- it imports torch before the first rank is started: seconds at each start, which `launch` does not take.
"""

import contextlib
import math
import os
import socket
import threading
import time
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from pathlib import Path

from runtime import stopping
from runtime.job_key import KEY_VARIABLE, JobKey
from runtime.nodes import Node
from runtime.noticeboard import LocalNoticeboard, Noticeboard, RemoteNoticeboard, listen
from runtime.rank_store import RankStore
from runtime.ssh import SshProcess, start_over_ssh

BEAT_SECONDS = 2.0
SILENT_SECONDS = 60.0
JOIN_SECONDS = 30.0
"""What a node gets at least to join, or to end, with the others."""
CAME_BY_VARIABLE = "DLLM_RL_CAME_BY"


@dataclass(frozen=True)
class RendezvousConfig:
    """How node 0 finds the others. launcher: each_node = all run the same command; ssh = node 0 starts the others;
    auto = ssh for those that have not come after wait_seconds."""

    launcher: str = "auto"
    wait_seconds: float = 60.0
    ssh: str = "ssh -o BatchMode=yes"
    ssh_user: str = "root"


class LostNode(Exception):
    """Another node failed, or does not answer."""


class OneMachine:
    """A job of one node."""

    def __init__(self, node: Node):
        self.node, self.rank_store = node, RankStore.of_one_machine()

    def check_stopping(self) -> None:
        """Stopped when a signal came."""
        stopping.check()

    def check(self) -> None:
        """LostNode when a node failed or is silent."""

    def fail(self, why: str) -> None:
        """Ends the job on the other nodes."""

    def leave(self) -> None:
        """The job has ended here."""


@dataclass
class Rendezvous(OneMachine):
    """Several nodes, from their first contact to the end of the job. board: their common key-value store."""

    node: Node
    board: Noticeboard
    rank_store: RankStore
    key: JobKey
    helpers: dict[int, SshProcess] = field(default_factory=dict)
    _answered: float = math.inf
    _lost: LostNode | None = None
    _left: threading.Event = field(default_factory=threading.Event)
    _beats: dict[int, tuple[str | None, float]] = field(default_factory=dict)

    def begin(self) -> None:
        """From now on signs of life are given and expected."""
        self._answered = time.monotonic()
        threading.Thread(target=self._beat, name="signs of life of the nodes", daemon=True).start()

    def wait_for_all(self, processes: int, settings: RendezvousConfig, key: str) -> None:
        """Node 0: until all nodes have joined, started over ssh where they do not come. ValueError where some do not,
        or where nodes run different numbers of processes."""
        missing = self._missing(0.0 if settings.launcher == "ssh" else settings.wait_seconds)
        if missing and settings.launcher != "each_node" and self.node.hosts:
            for index in missing:
                more = {**self.node.variables(index), CAME_BY_VARIABLE: "ssh", KEY_VARIABLE: key}
                self.helpers[index] = start_over_ssh(self.node, index, settings.ssh, settings.ssh_user, more)
            missing = self._missing(max(settings.wait_seconds, JOIN_SECONDS))
        if missing:
            raise self._not_joined(missing, settings.wait_seconds)
        numbers = [int(self.board.get(f"node/{i}") or 0) for i in range(self.node.count)]
        if set(numbers) != {processes}:
            why = f"nodes run {numbers} processes: set experiment.processes to one number for all."
            self.fail(why)
            raise ValueError(why)
        self.board.put("go", self.rank_store.environment["MASTER_PORT"])

    def _not_joined(self, missing: list[int], seconds: float) -> ValueError:
        """The error of nodes that have not come; ends the ssh commands."""
        ended = [f"ssh to {self.node.name(i)} ended with status {status}" for i, status in self._ended().items()]
        self._end_helpers()
        names = ", ".join(self.node.name(index) for index in missing)
        why = "; ".join(ended) if ended else f"after {seconds:.0f} s"
        return ValueError(
            f"{names} did not join {self.node.host}:{self.node.port} ({why}). Run the same "
            "command on every node, or let node 0 start the others (experiment.launcher=ssh, MLP_WORKER_{i}_HOST "
            "set, ssh without a password); experiment.join_seconds is how long to wait."
        )

    def wait_for_go(self, seconds: float) -> None:
        """Another node: until node 0 reports all nodes. ValueError when the job fails before, or after
        `seconds`."""
        deadline = time.monotonic() + seconds
        while (port := self.board.get("go")) is None:
            if failed := self.board.get("failed"):
                raise ValueError(f"the job does not begin: {failed}")
            self.check_stopping()
            if time.monotonic() > deadline:
                raise ValueError(f"{self.node}: node 0 did not begin in {seconds:.0f} s.")
            time.sleep(0.05)
        self.rank_store = RankStore.at(self.node.host, int(port))

    def check_stopping(self) -> None:
        """Stopped when a signal came; the other nodes stop too."""
        if stopping.is_asked():
            self.fail(f"{self.node} was stopped before the job began")
            self._end_helpers()
        stopping.check()

    def _missing(self, seconds: float) -> list[int]:
        """Nodes that have not come after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            self.check_stopping()
            missing = [i for i in range(self.node.count) if self.board.get(f"node/{i}") is None]
            if not missing or self._ended() or time.monotonic() > deadline:
                return missing
            time.sleep(0.05)

    def _ended(self) -> dict[int, int]:
        """Exit status of each ssh that has ended, by node; without those whose node came by itself meanwhile."""
        statuses = {index: helper.process.poll() for index, helper in self.helpers.items()}
        ended = {index: status for index, status in statuses.items() if status is not None}
        return {i: status for i, status in ended.items() if not self._came_by_itself(i)}

    def _came_by_itself(self, index: int) -> bool:
        return (self.board.get(f"claim/{index}") or "").startswith("itself ")

    def check(self) -> None:
        if self._lost is None and self._is_mute():
            self._lost = self._silent(0)
        if self._lost is not None:
            raise self._lost

    def _is_mute(self) -> bool:
        """Whether node 0's noticeboard has not answered for long since the start."""
        return time.monotonic() - self._answered > SILENT_SECONDS + BEAT_SECONDS

    def _beat(self) -> None:
        """Every BEAT_SECONDS a sign of life, and a look at the others."""
        while self._lost is None and not self._left.wait(BEAT_SECONDS):
            try:
                self._look(time.monotonic())
                self._answered = time.monotonic()
            except LostNode as lost:
                self._lost = lost
            except BlockingIOError:
                self._lost = self._silent(0)
            except (OSError, EOFError) as error:
                self._lost = LostNode(f"{self.node.name(0)} does not answer: {_reason(error)}")

    def _look(self, now: float) -> None:
        self.board.put(f"beat/{self.node.index}", str(now))
        ended = self._ended()
        if failed := self.board.get("failed"):
            raise LostNode(failed)
        for index in range(self.node.count):
            beat = self.board.get(f"beat/{index}")
            before, changed = self._beats.get(index, (None, now))
            self._beats[index] = (beat, now if beat != before else changed)
            if self.board.get(f"done/{index}") is not None:
                continue
            if index in ended:
                raise LostNode(f"ssh to {self.node.name(index)} ended with status {ended[index]}")
            if now - self._beats[index][1] > SILENT_SECONDS:
                raise self._silent(index)

    def _silent(self, index: int) -> LostNode:
        return LostNode(f"{self.node.name(index)} gave no sign of life for {SILENT_SECONDS:.0f} s")

    def fail(self, why: str) -> None:
        if self._is_mute():
            return
        with contextlib.suppress(OSError, EOFError):
            self.board.claim("failed", why)

    def leave(self) -> None:
        """Reports that this node is done; node 0, whose noticeboard the others read, waits for them a while."""
        self._left.set()
        if not self._is_mute():
            try:
                self.board.put(f"done/{self.node.index}", "")
                if self.node.index == 0:
                    self._wait_until_done()
            except (OSError, EOFError):
                pass
        self._end_helpers()
        self.key.remove()

    def _wait_until_done(self) -> None:
        deadline = time.monotonic() + JOIN_SECONDS
        while time.monotonic() < deadline:
            ended = self._ended()
            if all(i in ended or self.board.get(f"done/{i}") is not None for i in range(self.node.count)):
                return
            time.sleep(0.05)

    def _end_helpers(self) -> None:
        for helper in self.helpers.values():
            helper.end()


def meet(node: Node, processes: int, settings: RendezvousConfig, folder: Path) -> OneMachine:
    """Joins all nodes, or has node 0 start the others. folder: the run's, on a file system that all nodes share;
    the job's key is in it for a while (`JobKey`). ValueError with the fix where some nodes do not come, or where they
    run different numbers of processes; Stopped on a signal."""
    if node.count == 1:
        return OneMachine(node)
    key = JobKey(folder)
    try:
        return _lead(node, processes, settings, key) if node.index == 0 else _follow(node, processes, settings, key)
    except BaseException:
        key.remove()
        raise


def _lead(node: Node, processes: int, settings: RendezvousConfig, key: JobKey) -> Rendezvous:
    try:
        secret = key.make()
    except OSError as error:
        raise ValueError(
            f"the key of the rendezvous cannot be written to {key.file} ({_reason(error)}): make the folder writable, "
            f"or set {KEY_VARIABLE} to one secret text on every node."
        ) from None
    try:
        listener, for_ranks = listen(node.host, node.port), listen(node.host, 0)
    except OSError as error:
        raise ValueError(f"port {node.port} cannot be listened on: {_reason(error)}") from None
    board = LocalNoticeboard()
    board.serve(listener, secret.encode())
    here = Rendezvous(node, board, RankStore.served_by_rank_0(node.host, for_ranks), key)
    _join(here, processes)
    here.wait_for_all(processes, settings, secret)
    here.begin()
    return here


def _follow(node: Node, processes: int, settings: RendezvousConfig, key: JobKey) -> Rendezvous:
    seconds = 2 * max(settings.wait_seconds, JOIN_SECONDS)
    here = Rendezvous(node, _connect(node, key, seconds), RankStore({}), key)
    try:
        _join(here, processes)
        here.wait_for_go(seconds)
    except (OSError, EOFError):
        raise ValueError(f"{node}: node 0 left before the job began; its own message gives the reason.") from None
    here.begin()
    return here


def _join(here: Rendezvous, processes: int) -> None:
    mine = f"{os.environ.get(CAME_BY_VARIABLE, 'itself')} {socket.gethostname()} {os.getpid()}"
    if here.board.claim(f"claim/{here.node.index}", mine) != mine:
        raise ValueError(f"{here.node} has joined this job already: MLP_ROLE_INDEX must differ on every node.")
    here.board.put(f"node/{here.node.index}", str(processes))


def _connect(node: Node, key: JobKey, seconds: float) -> RemoteNoticeboard:
    """Node 0's noticeboard, once it and the key are there."""
    deadline = time.monotonic() + seconds
    while True:
        stopping.check()
        secret = key.find()
        try:
            if secret is not None:
                return RemoteNoticeboard((node.host, node.port), secret.encode(), SILENT_SECONDS)
            problem = (
                f"there is no key in {key.file}, where node 0 puts it: the run's folder must be on a file system that "
                f"all nodes share. Or set {KEY_VARIABLE} to one secret text on every node."
            )
        except AuthenticationError:
            source = KEY_VARIABLE if key.given else str(key.file)
            problem = f"node 0 at {node.host}:{node.port} holds another key than the one of {source}."
            if key.given:
                raise ValueError(f"{node}: {problem}") from None
        except (OSError, EOFError) as error:
            problem = (
                f"node 0 did not answer at {node.host}:{node.port} in {seconds:.0f} s ({_reason(error)}). Is the same "
                "command running there?"
            )
        if time.monotonic() > deadline:
            raise ValueError(f"{node}: {problem}")
        time.sleep(0.2)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
