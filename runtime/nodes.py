"""The machines of a job: which one this is, and how they meet before their ranks start."""

import math
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TextIO

from torch.distributed import DistError, Store, TCPStore

from runtime import stopping

BEAT_SECONDS = 2.0
SILENT_SECONDS = 60.0
STORE_SECONDS = 30.0
CAME_BY_VARIABLE = "DLLM_RL_CAME_BY"
PASSED_ON = re.compile(
    "(MLP|HF|HUGGINGFACE|WANDB|NCCL|GLOO|OMP|MKL|CUDA|TORCH|PYTHON)_.*|(LD_LIBRARY_)?PATH|PYTHONPATH|VIRTUAL_ENV|"
    ".*_proxy|.*_PROXY"
)


@dataclass(frozen=True)
class Node:
    """One machine of `count`. host, port: where node 0's store listens; hosts: of all nodes, where known."""

    count: int = 1
    index: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    hosts: Sequence[str] = ()

    def __str__(self) -> str:
        return self.name(self.index)

    def name(self, index: int) -> str:
        return f"node {index} ({self.hosts[index]})" if self.hosts else f"node {index}"


@dataclass(frozen=True)
class RendezvousConfig:
    """How node 0 finds the others. launcher: each_node = all run the same command; ssh = node 0 starts the others;
    auto = ssh for those that have not come after wait_seconds."""

    launcher: str = "auto"
    wait_seconds: float = 60.0
    ssh: str = "ssh -o BatchMode=yes"
    ssh_user: str = "root"


def this_node(environment: Mapping[str, str]) -> Node:
    """This machine's place from MLP_*, from NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT, or from SLURM's variables.
    ValueError where they are missing or do not fit."""
    env = environment
    try:
        if "MLP_WORKER_NUM" in env:
            count = int(env["MLP_WORKER_NUM"])
            hosts = [env.get(f"MLP_WORKER_{i}_HOST", "") for i in range(count)]
            place = int(env["MLP_ROLE_INDEX"]), env["MLP_WORKER_0_HOST"], int(env["MLP_WORKER_0_PORT"])
            node = Node(count, *place, hosts if all(hosts) else ())
        elif "NNODES" in env:
            place = int(env["NODE_RANK"]), env["MASTER_ADDR"], int(env["MASTER_PORT"])
            node = Node(int(env["NNODES"]), *place)
        elif "SLURM_JOB_NODELIST" in env:
            node = _slurm_node(env)
        else:
            raise ValueError(
                "which node of the job this is cannot be told: set MLP_WORKER_NUM, MLP_ROLE_INDEX, MLP_WORKER_0_HOST "
                "and MLP_WORKER_0_PORT (or NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT; SLURM sets its own). On one "
                "machine use rl.py or eval.py."
            )
    except KeyError as error:
        raise ValueError(f"the environment names a job of several nodes, but {error.args[0]} is not set.") from None
    if not 0 <= node.index < node.count:
        raise ValueError(f"this is node {node.index} of {node.count}: nodes count from 0.")
    return node


def _slurm_node(env: Mapping[str, str]) -> Node:
    hosts = host_list(env["SLURM_JOB_NODELIST"])
    if int(env.get("SLURM_NTASKS", len(hosts))) > len(hosts):
        raise ValueError(
            f"SLURM_NTASKS={env['SLURM_NTASKS']} on {len(hosts)} nodes: start one task a node (srun "
            "--ntasks-per-node=1); it starts a process for each GPU by itself."
        )
    port = int(env.get("MASTER_PORT", 20000 + int(env.get("SLURM_JOB_ID", 0)) % 10000))
    return Node(len(hosts), int(env["SLURM_NODEID"]), hosts[0], port, hosts)


def host_list(text: str) -> list[str]:
    """SLURM's short form of host names: "a[01-03,7],b" is a01, a02, a03, a7, b."""
    hosts = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", item)
        if match is None:
            hosts.append(item)
            continue
        before, ranges, after = match.groups()
        for part in ranges.split(","):
            low, _, high = part.partition("-")
            for number in range(int(low), int(high or low) + 1):
                hosts.append(f"{before}{number:0{len(low)}d}{after}")
    return hosts


class LostNode(Exception):
    """Another node failed, or does not answer."""


@dataclass
class Rendezvous:
    """The store that the launchers of all nodes share, from rendezvous to the end of the job."""

    node: Node
    store: Store
    port: int
    helpers: dict[int, "SshProcess"] = field(default_factory=dict)
    _answered: float = math.inf
    _lost: LostNode | None = None
    _left: threading.Event = field(default_factory=threading.Event)
    _heard: dict[int, tuple[bytes, float]] = field(default_factory=dict)

    @staticmethod
    def meet(node: Node, processes: int, settings: RendezvousConfig) -> "Rendezvous":
        """Waits for all nodes, or has node 0 start the others. ValueError with the fix where some do not come, or where
        nodes run different numbers of processes; Stopped when asked to."""
        seconds = 2 * max(settings.wait_seconds, STORE_SECONDS)
        try:
            store = TCPStore(
                node.host,
                node.port,
                is_master=node.index == 0,
                wait_for_workers=False,
                timeout=timedelta(seconds=seconds),
            )
        except DistError as error:
            if node.index == 0:
                raise ValueError(f"port {node.port} cannot be listened on: {_first_line(error)}") from None
            raise ValueError(
                f"{node}: node 0 did not answer at {node.host}:{node.port} in {seconds:.0f} s. Is the same command "
                "running there?"
            ) from None
        here = Rendezvous(node, store, store.port)
        mine = f"{os.environ.get(CAME_BY_VARIABLE, 'itself')} {socket.gethostname()} {os.getpid()}"
        if store.compare_set(f"claim/{node.index}", "", mine).decode() != mine:
            raise ValueError(f"{node} has joined this job already: MLP_ROLE_INDEX must differ on every node.")
        store.set(f"node/{node.index}", str(processes))
        if node.index == 0:
            here._wait_for_all(processes, settings)
        else:
            try:
                here._wait_for_go(seconds)
            except (DistError, RuntimeError):
                raise ValueError(f"{node}: node 0 left before the job began; what it says tells why.") from None
        store.set_timeout(timedelta(seconds=STORE_SECONDS))
        here._answered = time.monotonic()
        if node.count > 1:
            threading.Thread(target=here._beat, name="signs of life of the nodes", daemon=True).start()
        return here

    def _wait_for_all(self, processes: int, settings: RendezvousConfig) -> None:
        missing = self._missing(0.0 if settings.launcher == "ssh" else settings.wait_seconds)
        if missing and settings.launcher != "each_node" and self.node.hosts:
            self.helpers = {index: _start_over_ssh(self.node, index, settings) for index in missing}
            missing = self._missing(max(settings.wait_seconds, STORE_SECONDS))
        if missing:
            ended = [f"ssh to {self.node.name(i)} ended with status {status}" for i, status in self._ended().items()]
            self.end_helpers()
            names = ", ".join(self.node.name(index) for index in missing)
            why = "; ".join(ended) if ended else f"after {settings.wait_seconds:.0f} s"
            raise ValueError(
                f"{names} did not join {self.node.host}:{self.port} ({why}). Run the same "
                "command on every node, or let node 0 start the others (experiment.launcher=ssh, MLP_WORKER_{i}_HOST "
                "set, ssh without a password); experiment.join_seconds is how long to wait."
            )
        numbers = [int(self.store.get(f"node/{i}")) for i in range(self.node.count)]
        if set(numbers) != {processes}:
            why = f"nodes run {numbers} processes: set experiment.processes to one number for all."
            self.fail(why)
            raise ValueError(why)
        self.store.set("go", "")

    def _wait_for_go(self, seconds: float) -> None:
        """Until node 0 says that all are there. ValueError when it says that the job failed, DistError when nothing."""
        deadline = time.monotonic() + seconds
        while not self.store.check(["go"]):
            if self.store.check(["failed"]):
                raise ValueError(f"the job does not begin: {self.store.get('failed').decode()}")
            self.check_stopping()
            if time.monotonic() > deadline:
                raise DistError(f"node 0 did not begin in {seconds:.0f} s")
            time.sleep(0.05)

    def check_stopping(self) -> None:
        """Stopped when a signal asked for it; the other nodes hear of that."""
        if stopping.is_asked():
            self.fail(f"{self.node} was asked to stop before the job began")
            self.end_helpers()
        stopping.check()

    def _missing(self, seconds: float) -> list[int]:
        """Nodes that have not come after `seconds`."""
        deadline = time.monotonic() + seconds
        while True:
            self.check_stopping()
            missing = [i for i in range(self.node.count) if not self.store.check([f"node/{i}"])]
            if not missing or self._ended() or time.monotonic() > deadline:
                return missing
            time.sleep(0.05)

    def _ended(self) -> dict[int, int]:
        """Exit status of each ssh that has ended, by node; without those whose node came by itself meanwhile."""
        statuses = {index: helper.process.poll() for index, helper in self.helpers.items()}
        ended = {index: status for index, status in statuses.items() if status is not None}
        return {index: status for index, status in ended.items() if not self._came_by_itself(index)}

    def _came_by_itself(self, index: int) -> bool:
        claim = f"claim/{index}"
        return self.store.check([claim]) and self.store.get(claim).startswith(b"itself ")

    def check(self) -> None:
        """LostNode when a node failed or is silent."""
        if self._lost is None and self._is_mute():
            self._lost = LostNode(f"{self.node.name(0)} gave no sign of life for {SILENT_SECONDS:.0f} s")
        if self._lost is not None:
            raise self._lost

    def _is_mute(self) -> bool:
        """Whether node 0's store, which a call may wait for without end, has not answered for long since the start."""
        return self.node.count > 1 and time.monotonic() - self._answered > SILENT_SECONDS + BEAT_SECONDS

    def _beat(self) -> None:
        """Every BEAT_SECONDS a sign of life, and a look at the others."""
        while self._lost is None and not self._left.wait(BEAT_SECONDS):
            try:
                self._look(time.monotonic())
                self._answered = time.monotonic()
            except LostNode as lost:
                self._lost = lost
            except (DistError, RuntimeError) as error:
                self._lost = LostNode(f"node 0's store does not answer: {_first_line(error)}")

    def _look(self, now: float) -> None:
        self.store.set(f"beat/{self.node.index}", str(now))
        ended = self._ended()
        if self.store.check(["failed"]):
            raise LostNode(self.store.get("failed").decode())
        for index in range(self.node.count):
            beat = self.store.get(f"beat/{index}") if self.store.check([f"beat/{index}"]) else b""
            before, heard = self._heard.get(index, (None, now))
            self._heard[index] = (beat, now if beat != before else heard)
            done = self.store.check([f"done/{index}"])
            if not done and index in ended:
                raise LostNode(f"ssh to {self.node.name(index)} ended with status {ended[index]}")
            if not done and now - self._heard[index][1] > SILENT_SECONDS:
                raise LostNode(f"{self.node.name(index)} gave no sign of life for {SILENT_SECONDS:.0f} s")

    def fail(self, why: str) -> None:
        """Tells the other nodes."""
        if self._is_mute():
            return
        try:
            if not self.store.check(["failed"]):
                self.store.set("failed", why)
        except (DistError, RuntimeError):
            pass

    def leave(self) -> None:
        """Says that this node is done; node 0, whose store the others read, waits for them a while."""
        self._left.set()
        if self.node.count == 1:
            return
        if not self._is_mute():
            try:
                self.store.set(f"done/{self.node.index}", "")
                if self.node.index == 0:
                    self._wait_until_done()
            except (DistError, RuntimeError):
                pass
        self.end_helpers()

    def _wait_until_done(self) -> None:
        deadline = time.monotonic() + STORE_SECONDS
        while time.monotonic() < deadline:
            ended = self._ended()
            if all(self.store.check([f"done/{i}"]) or i in ended for i in range(self.node.count)):
                return
            time.sleep(0.05)

    def end_helpers(self) -> None:
        for helper in self.helpers.values():
            helper.end()


@dataclass
class SshProcess:
    """An ssh that runs this command on another node, and the thread that prints what it says."""

    process: subprocess.Popen[str]
    printer: threading.Thread

    def end(self) -> None:
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.terminate()
        self.printer.join(5.0)


def _start_over_ssh(node: Node, index: int, settings: RendezvousConfig) -> SshProcess:
    """This command on another node. What it needs of the environment goes over standard input, not the command line."""
    passed = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in passed.items()]
    exports += [f"export MLP_ROLE_INDEX={index}", f"export {CAME_BY_VARIABLE}=ssh"]
    command = shlex.join([sys.executable, os.path.abspath(sys.argv[0]), *sys.argv[1:]])
    script = "\n".join([*exports, f"cd {shlex.quote(os.getcwd())} && exec {command} < /dev/null", ""])
    words = [*shlex.split(settings.ssh), f"{settings.ssh_user}@{node.hosts[index]}", "exec sh -s"]
    print(f"starting {node.name(index)} over ssh: {shlex.join(words)}", flush=True)
    helper = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert helper.stdin is not None and helper.stdout is not None
    printer = threading.Thread(target=_prefixed, args=(helper.stdout, f"[node {index}] "), daemon=True)
    printer.start()
    try:
        helper.stdin.write(script)
        helper.stdin.close()
    except BrokenPipeError:
        pass
    return SshProcess(helper, printer)


def _prefixed(stream: TextIO, prefix: str) -> None:
    for line in stream:
        print(f"{prefix}{line.rstrip()}", flush=True)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
