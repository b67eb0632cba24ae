"""The ssh launcher against a real sshd on this machine: two nodes, small scripts."""

import getpass
import itertools
import os
import signal
import time
from pathlib import Path

import local_sshd
import pytest
from commands import finish, gone_in
from forked import start
from rank_jobs import free_port

pytestmark = pytest.mark.slow

SAYS_WHO = "sys.stdout.write(f'pids {os.getpid()} {os.getppid()}\\n'); sys.stdout.flush()\n"
WAITS = f"""
{SAYS_WHO}
while True:
    stopping.check()
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def ssh(tmp_path_factory):
    with local_sshd.serving(tmp_path_factory.mktemp("sshd")) as command:
        yield command


@pytest.fixture
def launched(script, ssh):
    """Node 0 of two, with one process each; node 1 is started by it over ssh."""

    def launch(work, **named):
        hosts = {f"MLP_WORKER_{i}_HOST": "127.0.0.1" for i in range(2)}
        place = {"MLP_WORKER_NUM": "2", "MLP_ROLE_INDEX": "0", "MLP_WORKER_0_PORT": str(free_port())}
        named = {"launcher": "ssh", "wait": 30.0, "ssh": ssh, "user": getpass.getuser()} | named
        arguments = [*script(work, processes=1, **named), "a.b=c d"]
        return start(arguments, **hosts, **place, NCCL_MARK="it's here")

    return launch


def read_until(process, wanted):
    lines = [process.stdout.readline()]
    while lines[-1] and wanted not in lines[-1]:
        lines.append(process.stdout.readline())
    assert wanted in lines[-1], lines
    return lines


def pids_of_both(process):
    """(rank, launcher) of each node, once both ranks have said them."""
    said = [line for line in (process.stdout.readline() for _ in range(3)) if "pids" in line]
    said.sort(key=lambda line: line.startswith("[node 1] "))
    pids = [tuple(map(int, line.split("pids ")[1].split())) for line in said]
    assert len(pids) == 2 and pids[0][1] == process.pid and said[1].startswith("[node 1] "), said
    return pids


def connection_of(process):
    """The ssh client that the launcher started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (pid,) = (int(child) for child in children if Path(f"/proc/{child}/comm").read_text() == "ssh\n")
    return pid


@pytest.mark.long
def test_what_the_other_node_says_is_streamed_and_prefixed(launched, tmp_path):
    work = f"""
    sys.stdout.write(f'early {{os.environ["NCCL_MARK"]}} {{sys.argv[1:]}}\\n'); sys.stdout.flush()
    while not os.path.exists("{tmp_path}/seen"):
        time.sleep(0.05)
    sys.stdout.write(f'sum {{sum(ranks.gather(1))}}\\n'); sys.stdout.flush()
    ranks.gather(0)  # a long line is written in pieces: one writer at a time
    if ranks.rank() == 1: sys.stdout.write('x' * 100000 + '\\n')
    """
    process = launched(work)
    lines = read_until(process, "[node 1] early it's here ['a.b=c d']")
    assert lines[0] == "starting node 1 (127.0.0.1) over ssh\n"
    (tmp_path / "seen").touch()
    status, out, err = finish(process)
    assert status == 0, err
    assert {"sum 2", "[node 1] sum 2", "[node 1] " + "x" * 100000} <= set(out.split("\n"))


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_failure_on_either_node_stops_both(launched, rank):
    work = f"{SAYS_WHO}\nranks.gather(1)\nif ranks.rank() == {rank}: sys.exit(7)\ntime.sleep(60)"
    process = launched(work)
    pids = pids_of_both(process)
    status, out, err = finish(process)
    assert status == (1 if rank else 7) and f"rank {rank} of 2 on node {rank} (127.0.0.1) ended with status 7" in err
    assert gone_in(itertools.chain(*pids), 5.0)


def test_a_request_to_stop_reaches_both(launched):
    process = launched(WAITS)
    pids = pids_of_both(process)
    process.send_signal(signal.SIGTERM)
    status, out, err = finish(process)
    assert status == 143 and {"saved 0", "[node 1] saved 1"} <= set(out.split("\n")), (out, err)
    assert "error" not in out + err
    assert gone_in(itertools.chain(*pids), 5.0)


@pytest.mark.long
@pytest.mark.parametrize("victim", ["launcher", "other launcher", "connection"])
def test_nothing_is_left_over_when_a_part_is_killed(launched, victim):
    process = launched(WAITS)
    (rank, launcher), (other_rank, other_launcher) = pids_of_both(process)
    connection = connection_of(process)
    killed = {"launcher": launcher, "other launcher": other_launcher, "connection": connection}[victim]
    started = time.monotonic()
    os.kill(killed, signal.SIGKILL)
    status, _, err = finish(process)
    assert gone_in([rank, launcher, connection, other_rank, other_launcher], 15.0)
    if victim == "launcher":
        assert status == -signal.SIGKILL
    else:
        assert status != 0 and time.monotonic() - started < 20.0
    if victim == "connection":
        assert "ssh to node 1 (127.0.0.1) ended with status -9" in err
