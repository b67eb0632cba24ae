"""Launching ranks: names of nodes, who failed, what is left over; signals. Real processes, small scripts; where an
interpreter of their own is what is tested, `commands.start` makes them."""

import os
import random
import signal
import socket
import struct
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import commands
import pytest
from commands import finish, gone_in, ranks_of
from forked import start
from rank_jobs import free_port

from runtime.job_key import KEY_VARIABLE
from runtime.nodes import Node, host_list, this_node

MLP = {"MLP_WORKER_NUM": "3", "MLP_ROLE_INDEX": "1", "MLP_WORKER_0_HOST": "a", "MLP_WORKER_0_PORT": "99"}


def test_where_a_node_is():
    assert this_node(MLP) == Node(3, 1, "a", 99)
    hosts = {f"MLP_WORKER_{i}_HOST": name for i, name in enumerate("abc")}
    assert this_node(MLP | hosts).hosts == ["a", "b", "c"]
    torch = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "5"}
    assert this_node(torch) == Node(2, 1, "h", 5)
    slurm = {"SLURM_JOB_NODELIST": "gpu[08-10]", "SLURM_NODEID": "2", "SLURM_JOB_ID": "17", "SLURM_NTASKS": "3"}
    assert this_node(slurm) == Node(3, 2, "gpu08", 20017, ["gpu08", "gpu09", "gpu10"])
    for found in (this_node(slurm), this_node(torch)):
        assert this_node(found.variables(1)) == replace(found, index=1)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "MLP_WORKER_NUM"),
        ({k: v for k, v in MLP.items() if k != "MLP_WORKER_0_PORT"}, "MLP_WORKER_0_PORT is not set"),
        (MLP | {"MLP_ROLE_INDEX": "3"}, "node 3 of 3"),
        ({"SLURM_JOB_NODELIST": "a,b", "SLURM_NODEID": "0", "SLURM_NTASKS": "16"}, "ntasks-per-node=1"),
    ],
)
def test_a_place_that_cannot_be_told(environment, says):
    with pytest.raises(ValueError, match=says):
        this_node(environment)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a", ["a"]),
        ("a,b-c", ["a", "b-c"]),
        ("n[1,3-4]", ["n1", "n3", "n4"]),
        ("n[009-011]x,m", ["n009x", "n010x", "n011x", "m"]),
    ],
)
def test_slurms_short_names(text, hosts):
    assert host_list(text) == hosts


@pytest.mark.slow
def test_a_launcher_needs_no_torch(tmp_path):
    """Importing it takes seconds, before the first rank could be started."""
    code = f"""if True:
        import sys
        from runtime import launch
        from train.command import main
        launch.launch = lambda n, *rest: print(n, [name for name in sys.modules if name.split(".")[0] == "torch"])
        sys.argv[1:] = ["config=configs/rl_tiny.yaml", "experiment.processes=2", "experiment.output_dir={tmp_path}"]
        main("train.rl", "usage")
    """
    status, out, err = finish(commands.start(["-c", code]))
    assert (status, out) == (0, "2 []\n"), err


@pytest.mark.slow
def test_ranks_see_each_other_and_end_well(script):
    status, out, err = finish(
        start(script("sys.stdout.write(f'sum {sum(ranks.gather(ranks.rank()))}\\n')", processes=3))
    )
    assert (status, out.split("\n").count("sum 3")) == (0, 3), err


SIGN = r"""
sys.stdout.write(f'pid {os.getpid()}\n'); sys.stdout.flush()
heartbeat = Heartbeat(folder, ranks.rank())
heartbeat.step = 12
heartbeat.enter("rollout")
"""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_rank_that_hangs_is_named_with_its_last_phase(script, tmp_path, who):
    work = (
        f"{SIGN}ranks.gather(1)\nif ranks.rank() == {who}: time.sleep(60)\nheartbeat.enter('update')\nranks.gather(1)"
    )
    got, out, err = finish(start(script(work, timeout=3.0)), 40)
    assert got == 75 and f"rank {who} of 2 on node 0 hangs" in err
    assert f"(last sign of life: rank {who} in step 12, rollout, " in err
    assert f"{tmp_path}/run has no checkpoint yet: the same command begins anew" in err
    assert gone_in([int(line.split()[1]) for line in out.splitlines()], 1.0)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2, 20])
def test_a_rank_that_gave_up_too_is_not_the_one_that_hangs(script, seconds):
    """Rank 0 takes long to end: less than the launcher waits for it, or more."""
    work = f"""{SIGN}
    ranks.gather(1)
    if ranks.rank() == 2: time.sleep(60)
    heartbeat.enter('update')
    try:
        ranks.gather(1)
    except child.FailedElsewhere:
        if ranks.rank() == 0: time.sleep({seconds})
        raise
    """
    got, _, err = finish(start(script(work.replace("\n    ", "\n"), processes=3, timeout=3.0)), 50)
    assert got == 75 and "rank 2 of 3 on node 0 hangs" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "status", "says"),
    [
        ("if ranks.rank() == 1: sys.exit(7)", 7, "rank 1 of 2 on node 0 ended with status 7"),
        (
            "if ranks.rank() == 1: os.kill(os.getpid(), signal.SIGKILL)",
            137,
            "rank 1 of 2 on node 0 was ended by SIGKILL",
        ),
    ],
)
def test_a_rank_that_dies_is_named_and_ends_the_job(script, tmp_path, work, status, says):
    (tmp_path / "run" / "ckpt" / "step-000010" / "trainer").mkdir(parents=True)
    (tmp_path / "run" / "ckpt" / "step-000010" / "trainer" / "files.json").touch()
    work = f"{SIGN}ranks.gather(1)\n{work}\nsignal.signal(signal.SIGTERM, signal.SIG_DFL)\ntime.sleep(60)"
    got, out, err = finish(start(script(work)), 40)
    assert got == status and f"{says} (last sign of life: rank 1 in step 12, rollout, " in err
    assert f"The same command resumes from {tmp_path}/run/ckpt/step-000010" in err
    assert gone_in([int(line.split()[1]) for line in out.splitlines()], 1.0)


WAITS = r"""
sys.stdout.write(f'pid {os.getpid()}\n'); sys.stdout.flush()
while True:
    stopping.check()
    time.sleep(0.05)
"""


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def pids_of(process, count):
    return [int(process.stdout.readline().split()[1]) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_reaches_all_ranks(script, number):
    process = start(script(WAITS))
    pids = pids_of(process, 2)
    process.send_signal(number)
    status, out, err = finish(process, 30)
    assert (status, sorted(out.split("\n"))) == (128 + number, ["", "saved 0", "saved 1"]), err
    assert gone_in(pids, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_rank_that_fails_while_it_stops_is_named(script, who):
    work = f"""
    sys.stdout.write('pid 0\\n'); sys.stdout.flush()
    try:
        while True:
            stopping.check()
            time.sleep(0.05)
    except stopping.Stopped:
        if ranks.rank() == {who}: sys.exit(9)
        raise
    """
    process = start(script(work))
    pids_of(process, 2)
    process.send_signal(signal.SIGTERM)
    status, out, err = finish(process, 30)
    assert status == 9 and f"rank {who} of 2 on node 0 ended with status 9; the job stops" in err
    assert "the same command begins anew" in err


@pytest.mark.slow
def test_ranks_that_end_at_a_second_request_have_not_failed(script):
    process = start(script("sys.stdout.write('pid 0\\n'); sys.stdout.flush(); time.sleep(60)"))
    pids_of(process, 2)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process, 30)
    assert (status, err) == (143, "")


@pytest.mark.slow
def test_one_rank_asked_to_stop_stops_all(script):
    process = start(script(WAITS))
    os.kill(pids_of(process, 2)[1], signal.SIGTERM)
    status, out, _ = finish(process, 30)
    assert status == 143 and sorted(out.split("\n")) == ["", "saved 0", "saved 1"]


@pytest.mark.slow
def test_no_rank_outlives_a_launcher_that_is_killed(script):
    process = start(script(WAITS))
    pids = pids_of(process, 2)
    process.kill()
    process.wait()
    assert gone_in(pids, 15.0)
    process.communicate()


@pytest.mark.slow
def test_a_rank_that_waits_for_the_others_in_a_library_ends_with_its_launcher(script):
    """There Python acts on no signal."""
    before = "import torch.distributed\nsys.stdout.write(f'pid {os.getpid()}\\n'); sys.stdout.flush()"
    process = start(script("pass", before=f"{before}\nif os.environ['RANK'] == '1': time.sleep(60)", timeout=60.0))
    pids = pids_of(process, 2)
    time.sleep(1.0)
    process.kill()
    process.wait()
    assert gone_in(pids, 3.0)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.long)])
@pytest.mark.timeout(500)
def test_a_launcher_killed_at_any_moment_of_its_start_leaves_no_rank(script, kills):
    path, moments = script(WAITS), random.Random(kills)
    for _ in range(kills):
        process = commands.start(path)
        time.sleep(moments.uniform(0.1, 6.0))
        process.kill()
        process.wait()
        left = ranks_of(process.pid)
        assert gone_in(left, 4.0), left
        assert ranks_of(process.pid) == []
        process.communicate()


HOLDS = r"""
sys.stdout.write(f'pid {os.getpid()}\n'); sys.stdout.flush()
ranks.gather(1)
while not (folder / "end").exists(): time.sleep(0.05)
ranks.gather(1)
"""


def listening(pids):
    """(address, port) of the TCP sockets on which these processes listen."""
    sockets = {}
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            place, state, inode = (line.split()[i] for i in (1, 3, 9))
            if state == "0A":
                address, port = place.split(":")
                arguments = struct.unpack(f">{len(address) // 8}I", bytes.fromhex(address))
                sockets[inode] = socket.inet_ntop(family, struct.pack(f"={len(arguments)}I", *arguments)), int(port, 16)
    found = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(descriptor)
            if target.startswith("socket:["):
                found.add(sockets.get(target[8:-1]))
    return found - {None}


@pytest.mark.slow
def test_a_job_of_one_machine_is_reached_from_nowhere(script, tmp_path):
    """The store is no socket, gloo listens on loopback, no other user opens the store, no program inherits it."""
    process = commands.start(script(HOLDS + "if ranks.rank() == 1: subprocess.run(['ls', '-l', '/proc/self/fd'])"))
    pids = pids_of(process, 2)
    wait_until(lambda: listening(pids), 20.0)
    assert listening([process.pid]) == set()
    assert all(address.startswith("127.") or address == "::1" for address, _ in listening(pids))
    assert b"DLLM_RL_STORE=memory:" in Path(f"/proc/{pids[0]}/environ").read_bytes()
    stores = [place for place in Path(f"/proc/{pids[0]}/fd").iterdir() if "memfd:dllm-rl" in os.readlink(place)]
    assert len(stores) == 2
    if os.geteuid() == 0:
        other = subprocess.run(["cat", stores[0]], user=65534, group=65534, capture_output=True, text=True, cwd="/")
        assert other.returncode != 0 and "Permission denied" in other.stderr
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "end").touch()
    status, out, err = finish(process)
    assert status == 0 and "/proc" in out and "memfd:dllm-rl" not in out, (out, err)


@pytest.mark.slow
def test_counts_of_all_ranks_are_one_and_begin_at_0(script):
    work = """
    for repeat in range(3):
        counts = ranks.SharedCounts("a", "b")
        for _ in range(500): counts.add("a", 2)
        last = counts.add("b", 1)
        found = ranks.gather((counts.add("a", 0), last))
        assert ranks.gather(counts.add("a", 0)) == [3000] * 3 and sorted(last for _, last in found) == [1, 2, 3], found
    """
    status, _, err = finish(start(script(work, processes=3)))
    assert status == 0, err


def nodes(path, count=2, come=None, **more):
    port = str(free_port())
    env = {"MLP_WORKER_NUM": str(count), "MLP_WORKER_0_HOST": "127.0.0.1", "MLP_WORKER_0_PORT": port, **more}
    return [start(path, MLP_ROLE_INDEX=str(i), **env) for i in range(come or count)]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["each_node", "auto"])
def test_two_nodes_make_one_job(script, tmp_path, launcher):
    """auto: nodes that come by themselves are not started over ssh (which would fail here)."""
    work = f"""
    counts = ranks.SharedCounts("n", "m")
    counts.add("m", ranks.rank())
    assert ranks.gather(os.environ.get("{KEY_VARIABLE}")) == [None] * 4
    sys.stdout.write(f"sum {{counts.add('m', 0)}}\\n")
    """
    path = script(work, launcher=launcher)
    for status, out, err in map(finish, nodes(path, MLP_WORKER_1_HOST="127.0.0.1")):
        assert (status, out.split("\n").count("sum 6")) == (0, 2), err
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.slow
def test_a_failure_on_one_node_ends_the_other(script):
    path = script("ranks.gather(1)\nif ranks.rank() == 3: sys.exit(7)\ntime.sleep(60)")
    (first, _, first_err), (second, _, second_err) = map(finish, nodes(path))
    why = "rank 3 of 4 on node 1 ended with status 7"
    assert first == 1 and second == 7 and why in first_err and why in second_err


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("silent", [0, 1])
def test_a_node_that_falls_silent_is_named_and_ends_the_job(script, silent):
    """Its launcher is stopped, as by a machine that freezes; ranks of the other node hear nothing and are ended."""
    path = script(f"{SIGN}ranks.gather(1)\ntime.sleep(90)", processes=1, silent=4.0)
    launchers = nodes(path)
    pids = [pid for launcher in launchers for pid in pids_of(launcher, 1)]
    launchers[silent].send_signal(signal.SIGSTOP)
    status, _, err = finish(launchers[1 - silent], 40)
    assert status == 1 and f"the job stops: node {silent} gave no sign of life for 4 s" in err
    assert "the same command begins anew" in err
    assert gone_in([pids[1 - silent]], 1.0)
    launchers[silent].kill()
    launchers[silent].communicate()
    assert gone_in(pids, 10.0)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("asked", [0, 1])
def test_a_request_to_stop_while_nodes_meet(script, tmp_path, asked):
    """Of three nodes two have come. The other one of them hears of it; node 0 goes on waiting for the third."""
    path = script(f"open('{tmp_path}/began', 'w')", processes=1, wait=8.0)
    launchers = nodes(path, 3, come=2)
    time.sleep(6.0)
    launchers[asked].send_signal(signal.SIGTERM)
    status, _, err = finish(launchers[asked], 15)
    other, *_ = finish(launchers[1 - asked], 40)
    assert status == 143 and other == 2 and not (tmp_path / "began").exists(), err


@pytest.mark.long
@pytest.mark.slow
def test_two_nodes_that_wait_for_a_rank_name_it(script):
    """Node 0, whose ranks gave up waiting, learns from node 1 which one hangs."""
    work = f"{SIGN}ranks.gather(1)\nif ranks.rank() == 3: time.sleep(60)\nranks.gather(1)"
    for _, _, err in map(finish, nodes(script(work, timeout=3.0))):
        assert "rank 3 of 4 on node 1 hangs" in err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["each_node", "auto"])
def test_a_node_that_does_not_come_is_named_with_the_fix(script, launcher):
    """auto: where the other nodes' hosts are not known."""
    path = script("pass", launcher=launcher, wait=2.0)
    env = {"MLP_WORKER_NUM": "2", "MLP_ROLE_INDEX": "0", "MLP_WORKER_0_HOST": "127.0.0.1"}
    status, _, err = finish(start(path, MLP_WORKER_0_PORT=str(free_port()), **env))
    assert status == 2 and "node 1 did not join 127.0.0.1:" in err and "experiment.launcher=ssh" in err
    assert "after 2 s" in err


@pytest.mark.slow
def test_an_ssh_that_fails_is_named_at_once(script):
    hosts = {f"MLP_WORKER_{i}_HOST": "127.0.0.1" for i in range(2)}
    path, port = script("pass", launcher="ssh", wait=50.0, ssh="false"), str(free_port())
    process = start(path, MLP_WORKER_NUM="2", MLP_ROLE_INDEX="0", MLP_WORKER_0_PORT=port, **hosts)
    status, _, err = finish(process, 40)
    assert status == 2 and "ssh to node 1 (127.0.0.1) ended with status 1" in err and "without a password" in err


@pytest.mark.slow
def test_a_node_with_another_key_is_refused(script, tmp_path):
    path = script("pass", wait=2.0)
    env = {"MLP_WORKER_NUM": "2", "MLP_WORKER_0_HOST": "127.0.0.1", "MLP_WORKER_0_PORT": str(free_port())}
    launchers = [start(path, MLP_ROLE_INDEX=str(i), **env, **{KEY_VARIABLE: f"key {i}"}) for i in range(2)]
    (first, _, first_err), (second, _, second_err) = map(finish, launchers)
    assert first == 2 and "node 1 did not join" in first_err
    assert second == 2 and f"holds another key than the one of {KEY_VARIABLE}" in second_err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_node_that_finds_no_key_is_told_where_it_looked(script, tmp_path):
    path = script("pass", wait=0.5, silent=0.5)
    env = {"MLP_WORKER_NUM": "2", "MLP_WORKER_0_HOST": "127.0.0.1", "MLP_WORKER_0_PORT": str(free_port())}
    status, _, err = finish(start(path, MLP_ROLE_INDEX="1", **env))
    assert status == 2 and f"no key in {tmp_path}/run/.rendezvous-key" in err and KEY_VARIABLE in err


@pytest.mark.slow
def test_nodes_with_other_numbers_of_processes_are_refused(script):
    path = script("ranks.gather(1)", processes="1 + int(os.environ['MLP_ROLE_INDEX'])")
    (first, _, first_err), (second, _, second_err) = map(finish, nodes(path))
    assert first == 2 and "nodes run [1, 2] processes" in first_err
    assert second == 2 and ("nodes run [1, 2]" in second_err or "node 0 left before the job began" in second_err)


@pytest.mark.slow
def test_a_port_that_is_taken_is_an_error(script):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        env = {
            "MLP_WORKER_NUM": "2",
            "MLP_ROLE_INDEX": "0",
            "MLP_WORKER_0_HOST": "127.0.0.1",
            "MLP_WORKER_0_PORT": port,
        }
        status, _, err = finish(start(script("pass", wait=2.0), **env))
    assert status == 2 and f"port {port} cannot be listened on" in err


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ssh", "auto"])
def test_node_0_starts_the_others_over_ssh(script, tmp_path, launcher):
    """A stand-in for ssh that notes whom it was asked for and runs the command here."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nshift 3\nexec sh -c "$*"\n')
    ssh.chmod(0o755)
    work = "sys.stdout.write(f'sum {sum(ranks.gather(ranks.rank()))} ' + os.environ['NCCL_MARK'] + chr(10))"
    path = script(work, launcher=launcher, wait=3.0 if launcher == "auto" else 30.0, ssh=f"{ssh} -p 22")
    hosts = {f"MLP_WORKER_{i}_HOST": "127.0.0.1" for i in range(2)}
    port = str(free_port())
    process = start(
        path, MLP_WORKER_NUM="2", MLP_ROLE_INDEX="0", MLP_WORKER_0_PORT=port, NCCL_MARK="it's here", **hosts
    )
    status, out, err = finish(process)
    assert status == 0, err
    assert (tmp_path / "asked").read_text() == "-p 22 me@127.0.0.1 exec sh -s\n"
    assert out.split("\n").count("sum 6 it's here") == 2 and out.split("\n").count("[node 1] sum 6 it's here") == 2


@pytest.mark.long
@pytest.mark.slow
def test_a_node_that_comes_after_ssh_was_asked_for_it(script, tmp_path):
    """The stand-in for ssh takes so long that node 1 comes by itself first; its copy is refused while the job runs."""
    ssh = tmp_path / "ssh"
    ssh.write_text(
        f'#!/bin/sh\nwhile [ ! -e {tmp_path}/began ]; do sleep 0.1; done\nsh -c "$2"\necho $? > {tmp_path}/ended\n'
        "exit 2\n"
    )
    ssh.chmod(0o755)
    work = f"""
    open('{tmp_path}/began', 'w').close()
    while not os.path.exists('{tmp_path}/ended'): time.sleep(0.1)
    time.sleep(2.0)
    sys.stdout.write(f'sum {{sum(ranks.gather(ranks.rank()))}}\\n')
    """
    path = script(work, launcher="auto", processes=1, wait=1.0, ssh=str(ssh))
    hosts = {f"MLP_WORKER_{i}_HOST": "127.0.0.1" for i in range(2)}
    place = hosts | {"MLP_WORKER_NUM": "2", "MLP_WORKER_0_PORT": str(free_port())}
    first = start(path, MLP_ROLE_INDEX="0", **place)
    assert first.stdout.readline().startswith("starting node 1 (127.0.0.1) over ssh")
    second = start(path, MLP_ROLE_INDEX="1", **place)
    for status, out, err in map(finish, [first, second]):
        assert status == 0 and "sum 1" in out.split("\n"), (out, err)
    assert (tmp_path / "ended").read_text() == "2\n"
