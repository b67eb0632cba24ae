"""Whole commands on several processes and nodes of this machine, as typed: same results, stops, resumes."""

import getpass
import json
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import commands
import forked
import local_sshd
import pytest
import torch
from end_to_end import EVAL, RL, SFT, read_jsonl, without_clock
from rank_jobs import free_port

from models import load_model

SMOOTH = ("optimizer.params.epsilon=1e-4",)
TOLERANCE = 1e-5
pytestmark = pytest.mark.slow
needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="deepspeed is not installed (requirements-extras.txt)"
)


def start(arguments, **named):
    return forked.start(arguments, stderr=subprocess.STDOUT, **named)


def finish(process):
    return commands.finish(process, 150)


def run(arguments, **named):
    return ended_well(start(arguments, **named))


def ended_well(process):
    status, out = finish(process)
    assert status == 0, out
    return out


def assert_same_run(folder, other):
    mine, theirs = (without_clock(read_jsonl(path / "metrics.jsonl")) for path in (folder, other))
    assert [row.keys() for row in mine] == [row.keys() for row in theirs]
    for row, wanted in zip(mine, theirs, strict=True):
        for name in row.keys() - {"micro_batches"}:
            assert row[name] == pytest.approx(wanted[name], abs=TOLERANCE, rel=TOLERANCE), (row["step"], name)
    weights, wanted = (load_model(path / "ckpt" / "optimized").state_dict() for path in (folder, other))
    assert all(float((weights[name] - wanted[name]).abs().max()) <= TOLERANCE for name in wanted)


@pytest.mark.parametrize(
    "engine",
    [
        "ddp",
        pytest.param("deepspeed_zero2", marks=[pytest.mark.long, needs_deepspeed]),
        pytest.param("deepspeed_zero3", marks=[pytest.mark.long, needs_deepspeed]),
    ],
)
def test_two_nodes_on_loopback_do_as_one_process(shop, engine):
    """2 nodes x 2 processes, 3 steps."""
    arguments = (*SMOOTH, "experiment.total_step=3", "training.rows_per_update=16")
    run(["rl.py", *shop.arguments(RL, *arguments, "experiment.project=one")])
    place = {"MLP_WORKER_NUM": "2", "MLP_WORKER_0_HOST": "127.0.0.1", "MLP_WORKER_0_PORT": str(free_port())}
    file = f"experiment.deepspeed_file=2_node_2_cpus_{engine}"
    typed = shop.arguments(RL, *arguments, "experiment.project=nodes", file, "experiment.num_node=2")
    nodes = [start(["multinode_rl.py", *typed], MLP_ROLE_INDEX=str(i), **place) for i in range(2)]
    for status, out in map(finish, nodes):
        assert status == 0, out
    assert_same_run(shop.runs / "nodes", shop.runs / "one")


@pytest.mark.long
def test_two_nodes_over_ssh_do_as_one_process(shop):
    """As dLLM-RL's entry script has it: node 0 alone runs the command."""
    (shop.folder / "sshd").mkdir()
    arguments = (*SMOOTH, "training.rows_per_update=16", "evaluation.eval_dataset=''")
    run(["rl.py", *shop.arguments(RL, *arguments, "experiment.project=one")])
    hosts = {f"MLP_WORKER_{i}_HOST": "127.0.0.1" for i in range(2)}
    place = {"MLP_WORKER_NUM": "2", "MLP_ROLE_INDEX": "0", "MLP_WORKER_0_PORT": str(free_port())}
    with local_sshd.serving(shop.folder / "sshd") as ssh:
        over_ssh = (f"experiment.ssh={ssh}", f"experiment.ssh_user={getpass.getuser()}", "experiment.join_seconds=1")
        typed = shop.arguments(RL, *arguments, *over_ssh, "experiment.project=nodes", "experiment.num_node=2")
        out = run(["multinode_rl.py", *typed], **hosts, **place)
    assert out.count("starting node 1 (127.0.0.1) over ssh") == 1
    assert_same_run(shop.runs / "nodes", shop.runs / "one")


@pytest.mark.long
def test_an_evaluation_on_two_processes(shop):
    for project, processes in (("one", 1), ("two", 2)):
        run(["eval.py", *shop.arguments(EVAL, f"experiment.project={project}", f"experiment.processes={processes}")])
    one, two = (
        {(row["task"], row["sample"]): row["completion"] for row in read_jsonl(shop.runs / name / "samples.jsonl")}
        for name in ("one", "two")
    )
    assert one == two and len(read_jsonl(shop.runs / "two" / "samples.jsonl")) == len(two)


@pytest.mark.parametrize(
    ("launcher", "engine", "script"),
    [
        pytest.param("torchrun", "ddp", "train/sft.py", marks=pytest.mark.long),
        pytest.param("accelerate", "ddp", "train/sft.py", marks=pytest.mark.long),
        pytest.param("accelerate", "ddp", "rl.py", marks=pytest.mark.long),
        pytest.param("accelerate", "deepspeed_zero3", "train/sft.py", marks=[needs_deepspeed, pytest.mark.long]),
    ],
)
def test_others_launchers_start_two_ranks(shop, launcher, engine, script):
    """An update has as many rows as one process is told for two: with any other number of ranks it would not."""
    text = {"rl.py": RL, "train/sft.py": SFT}[script]
    arguments = (*SMOOTH, "training.gradient_accumulation_steps=1", "training.batch_size_lm=2")
    arguments = (*arguments, *(("training.num_train_epochs=3",) if text is SFT else ()))
    run([script, *shop.arguments(text, *arguments, "training.rows_per_update=4", "experiment.project=one")])
    port, file = f"{free_port()}", f"accelerate_configs/1_node_2_cpus_{engine}.yaml"
    module, options = {
        "torchrun": ("torch.distributed.run", ["--nproc_per_node=2", f"--master_port={port}"]),
        "accelerate": ("accelerate.commands.launch", [f"--config_file={file}", f"--main_process_port={port}"]),
    }[launcher]
    typed = [*options, script, *shop.arguments(text, *arguments, "experiment.project=two")]
    on_cpu = {"ACCELERATE_USE_CPU": "true"} if engine == "ddp" else {}
    program = (sys.executable, "-m", module)
    out = ended_well(commands.start(typed, program, stderr=subprocess.STDOUT, **on_cpu))
    assert {"ddp": "DDP, 2 processes", "deepspeed_zero3": "ZeRO-3 over 2 processes"}[engine] in out
    assert_same_run(shop.runs / "two", shop.runs / "one")
    state = torch.load(shop.runs / "two" / "ckpt" / "optimized" / "trainer" / "state.pt", weights_only=True)
    assert state["rows_per_update"] == 2 * 2


def wait_for(process, condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, finish(process)[1]
        time.sleep(0.02)


def rows_in(path):
    return path.read_text().count("\n") if path.exists() else 0


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)]
)
def test_rl_asked_to_stop_saves_and_resumes_with_another_number_of_processes(shop, number, status):
    arguments = (*SMOOTH, "experiment.total_step=8", "experiment.save_every=8", "experiment.eval_every=3")
    arguments = (*arguments, "training.rows_per_update=8")
    run(["rl.py", *shop.arguments(RL, *arguments, "experiment.project=straight")])
    typed, folder = shop.arguments(RL, *arguments, "experiment.project=stopped"), shop.runs / "stopped"
    process = start(["rl.py", *typed, "experiment.processes=2"])
    wait_for(process, lambda: rows_in(folder / "rollouts.jsonl") >= 32)
    process.send_signal(number)
    got, out = finish(process)
    assert got == status and f"The same command resumes from {folder}/ckpt/step-" in out and "Traceback" not in out
    (saved,) = folder.glob("ckpt/step-*")
    assert 2 <= int(saved.name.removeprefix("step-")) < 8
    run(["rl.py", *typed])
    assert_same_run(folder, shop.runs / "straight")


@pytest.mark.long
def test_fine_tuning_asked_to_stop_saves_within_an_epoch(shop):
    arguments = (*SMOOTH, "training.num_train_epochs=150", "experiment.save_every=150")
    arguments = (*arguments, "training.batch_size_lm=2", "training.max_tokens_per_microbatch=32")
    run(["train/sft.py", *shop.arguments(SFT, *arguments, "experiment.project=straight")])
    typed, folder = shop.arguments(SFT, *arguments, "experiment.project=stopped"), shop.runs / "stopped"
    process = start(["train/sft.py", *typed])
    wait_for(process, lambda: rows_in(folder / "metrics.jsonl") >= 4)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 143
    run(["train/sft.py", *typed])
    assert_same_run(folder, shop.runs / "straight")


@pytest.mark.long
def test_a_reward_that_fails_ends_every_rank_with_one_message(shop):
    status, out = finish(start(["rl.py", *shop.arguments(RL, "experiment.processes=2", reward="nowhere")]))
    assert status == 2 and out.count("'nowhere'") + out.count(":nowhere") == 1 and "Traceback" not in out, out


@pytest.mark.long
def test_resume_says_what_a_run_begins_with(shop):
    arguments = (*SMOOTH, "experiment.total_step=2", "evaluation.eval_dataset=''")
    run(["rl.py", *shop.arguments(RL, *arguments, "experiment.project=first")])
    first = shop.runs / "first"
    status, out = finish(
        start(["rl.py", *shop.arguments(RL, *arguments, "experiment.project=first", "experiment.resume=never")])
    )
    assert status == 2 and "experiment.resume=never" in out
    run(
        [
            "rl.py",
            *shop.arguments(RL, *arguments, "experiment.project=b", f"experiment.resume={first}/ckpt/step-000001"),
        ]
    )
    assert [row["step"] for row in read_jsonl(shop.runs / "b" / "metrics.jsonl")] == [2]
    weights, wanted = (load_model(path / "ckpt" / "optimized").state_dict() for path in (shop.runs / "b", first))
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    torn = shop.folder / "torn"
    shutil.copytree(first / "ckpt" / "step-000001", torn)
    (torn / "model.safetensors").unlink()
    status, out = finish(
        start(["rl.py", *shop.arguments(RL, *arguments, "experiment.project=c", f"experiment.resume={torn}")])
    )
    assert status == 2 and "not a whole checkpoint" in out
    assert json.loads((first / "ckpt" / "step-000001" / "trainer" / "files.json").read_text())["step"] == 1
