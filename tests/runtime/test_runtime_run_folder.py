import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from runtime import run_config
from runtime.files import append_jsonl
from runtime.run_config import Settings
from runtime.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
CONFIG = {
    "experiment": {"project": "demo", "overwrite": False},
    "optimizer": {"params": {"learning_rate": 1e-6, "name": "adamw"}},
    "training": {"block_sizes": [4, 8], "post_num": None, "template": "{{problem}}"},
}


def changed(**values):
    config = OmegaConf.create(CONFIG)
    for key, value in values.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    return OmegaConf.to_container(config)


def finished_run(path, config=CONFIG):
    with RunFolder.open(path, Settings(config), overwrite=False) as run:
        append_jsonl(run.metrics, [{"step": step} for step in (1, 2, 3)])
        append_jsonl(run.rollouts, [{"step": step} for step in (1, 2, 2, 3, 3)])
        (run.checkpoints / "step-3").mkdir(parents=True)
    return path


def child_in(path, then="time.sleep(60)"):
    code = (
        "import json, sys, time; from pathlib import Path\n"
        "from runtime.run_config import Settings; from runtime.run_folder import RunFolder\n"
        "run = RunFolder.open(Path(sys.argv[1]), Settings(json.loads(sys.argv[2])), overwrite=False)\n"
        f"print('open', flush=True); {then}\n"
    )
    command = [sys.executable, "-c", code, str(path), json.dumps(CONFIG)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stdout.readline() == "open\n", child.stderr.read()
    return child


def test_new_then_resumed(tmp_path):
    with RunFolder.open(tmp_path / "runs" / "demo", Settings(CONFIG), overwrite=False) as run:
        assert not run.resumed
        assert OmegaConf.to_container(OmegaConf.load(run.config)) == CONFIG
    assert RunFolder.check(run.path, Settings(CONFIG), overwrite=False)
    with RunFolder.open(run.path, Settings(CONFIG), overwrite=False) as run:
        assert run.resumed


def test_other_config_is_refused_with_the_difference(tmp_path):
    path = finished_run(tmp_path / "demo")
    other = changed(optimizer__params__learning_rate=5e-6, training__shrink=2)
    del other["training"]["post_num"]
    with pytest.raises(ValueError) as refusal:
        RunFolder.open(path, Settings(other), overwrite=False)
    lines = str(refusal.value).splitlines()
    assert lines[1:4] == [
        "  optimizer.params.learning_rate  1e-06 -> 5e-06",
        "  training.post_num               null -> (absent)",
        "  training.shrink                 (absent) -> 2",
    ]
    assert "experiment.overwrite=true" in lines[4]
    with pytest.raises(ValueError, match="learning_rate"):
        RunFolder.check(path, Settings(other), overwrite=False)
    assert RunFolder.open(path, Settings(CONFIG), overwrite=False).resumed


def test_where_and_by_which_engine_it_runs_is_not_compared(tmp_path):
    path = finished_run(tmp_path / "demo")
    elsewhere = changed(experiment__deepspeed_file="1_node_2_cpus_deepspeed_zero3", experiment__processes=2)
    assert RunFolder.open(path, Settings(elsewhere), overwrite=False).resumed


def test_overwrite_deletes_the_run_and_nothing_else(tmp_path):
    path = finished_run(tmp_path / "demo")
    (path / "notes.txt").write_text("mine")
    other = changed(training__post_num=1)
    assert not RunFolder.check(path, Settings(other), overwrite=True)
    assert (path / "ckpt").exists()
    with RunFolder.open(path, Settings(other), overwrite=True) as run:
        assert not run.resumed
        assert sorted(entry.name for entry in path.iterdir()) == [".lock", "config.yaml", "notes.txt"]
        assert OmegaConf.load(run.config).training.post_num == 1


def test_overwrite_keeps_the_same_run_and_says_so(tmp_path, caplog):
    path = finished_run(tmp_path / "demo")
    with RunFolder.open(path, Settings(changed(experiment__overwrite=True)), overwrite=True) as run:
        assert run.resumed
        assert run.metrics.exists()
    assert "experiment.overwrite does nothing" in caplog.text


def test_overwrite_empties_a_linked_checkpoint_folder_and_keeps_the_link(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    path = tmp_path / "demo"
    path.mkdir()
    (path / "ckpt").symlink_to(scratch)
    finished_run(path)
    assert (scratch / "step-3").exists()
    RunFolder.open(path, Settings(changed(training__post_num=1)), overwrite=True).close()
    assert (path / "ckpt").is_symlink()
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_files_are_never_taken(tmp_path, overwrite):
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"holds metrics.jsonl but no config.yaml"):
        RunFolder.open(tmp_path, Settings(CONFIG), overwrite=overwrite)
    (tmp_path / "config.yaml").write_text("mine: 1\n")
    with pytest.raises(ValueError, match="was not written by a run"):
        RunFolder.open(tmp_path, Settings(CONFIG), overwrite=overwrite)
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"
    assert (tmp_path / "config.yaml").read_text() == "mine: 1\n"


def test_drop_after(tmp_path):
    path = finished_run(tmp_path / "demo")
    with RunFolder.open(path, Settings(CONFIG), overwrite=False) as run:
        run.drop_after(2)
        assert run.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_lines_of_an_evaluation_that_was_broken_off_are_dropped(tmp_path):
    path = finished_run(tmp_path / "demo")
    lines = ['{"step": 1}\n', '{"step": 1, "eval/a/accuracy": 0.5}\n', '{"step": 2}\n']
    broken_off = '{"step": 2, "eval/a/accuracy": 0.5}\n'
    with RunFolder.open(path, Settings(CONFIG), overwrite=False) as run:
        run.metrics.write_text("".join([*lines, broken_off]))
        run.drop_after(2, evaluated=[1])
        assert run.metrics.read_text() == "".join(lines)


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    path = finished_run(tmp_path / "demo")
    (path / "ckpt" / ".step-4.tmp-77-0").mkdir()
    (path / ".config.yaml.tmp-77-1").touch()
    RunFolder.open(path, Settings(CONFIG), overwrite=False).close()
    assert [entry.name for entry in (path / "ckpt").iterdir()] == ["step-3"]
    assert not list(path.glob(".config*"))


def test_file_in_the_way(tmp_path):
    (tmp_path / "runs").write_text("a file")
    for root in (tmp_path / "runs", tmp_path / "runs" / "demo"):
        for act in (RunFolder.open, RunFolder.check):
            with pytest.raises(ValueError, match=r"runs is a file. Choose another experiment.project"):
                act(root, Settings(CONFIG), overwrite=True)


def test_read_only_folder():
    """Fault 78."""
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        os.chmod(parent, 0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            for act in (RunFolder.open, RunFolder.check):
                with pytest.raises(ValueError, match=r"cannot write to the run folder .*demo: Permission denied"):
                    act(Path(parent) / "demo", Settings(CONFIG), overwrite=False)
        finally:
            if root:
                os.seteuid(0)
            os.chmod(parent, 0o755)


def test_full_disk_is_a_clear_error_and_frees_the_lock(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_config, "atomic_write_text", full)
        with pytest.raises(ValueError, match="No space left on device"):
            RunFolder.open(tmp_path, Settings(CONFIG), overwrite=False)
    RunFolder.open(tmp_path, Settings(CONFIG), overwrite=False).close()


@pytest.mark.slow
def test_second_writer_is_refused_until_the_first_is_gone(tmp_path):
    child = child_in(tmp_path / "demo")
    with pytest.raises(ValueError, match=f"is being written by process {child.pid} on {socket.gethostname()}"):
        RunFolder.open(tmp_path / "demo", Settings(CONFIG), overwrite=True)
    child.send_signal(signal.SIGKILL)
    child.wait()
    with RunFolder.open(tmp_path / "demo", Settings(CONFIG), overwrite=False) as run:
        assert run.resumed


def test_forked_child_does_not_hold_the_lock(tmp_path):
    fork_then_die = "import os; pid = os.fork(); pid or time.sleep(60); print(pid, flush=True); time.sleep(60)"
    child = child_in(tmp_path / "demo", fork_then_die)
    orphan = int(child.stdout.readline())
    try:
        child.kill()
        child.wait()
        os.kill(orphan, 0)
        RunFolder.open(tmp_path / "demo", Settings(CONFIG), overwrite=False).close()
    finally:
        os.kill(orphan, signal.SIGKILL)


@pytest.mark.slow
def test_holder_on_another_machine(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("runtime.lock.HEARTBEAT_SECONDS", 0.2)
    path = finished_run(tmp_path / "demo")
    lock = path / ".lock"
    holder = json.dumps({"pid": 7, "host": "node-1", "started": "2026-01-01 00:00:00"})
    lock.write_text(holder)
    stop = threading.Event()

    def beat():
        while not stop.wait(0.05):
            os.utime(lock)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ValueError, match="process 7 on node-1 since 2026-01-01"):
            RunFolder.open(path, Settings(CONFIG), overwrite=False)
    finally:
        stop.set()
        thread.join()
    assert lock.read_text() == holder
    with RunFolder.open(path, Settings(CONFIG), overwrite=False):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
        before = lock.stat().st_mtime_ns
        time.sleep(0.7)
        assert lock.stat().st_mtime_ns > before
    assert lock.read_text() == ""
    assert "last written on node-1" in caplog.text


def test_a_config_that_was_changed_in_place_is_named_and_the_run_goes_on(tmp_path, caplog):
    """A comment, say: the values are those of now."""
    run = finished_run(tmp_path)
    text = (run / "config.yaml").read_text()
    assert RunFolder.check(run, Settings(CONFIG), overwrite=False) and not caplog.text
    (run / "config.yaml").write_text(text + "# mine\n")
    assert RunFolder.check(run, Settings(CONFIG), overwrite=False)
    assert f"{run}/config.yaml was damaged or edited" in caplog.text


@pytest.mark.parametrize("how", ["cut", "zeroed", "half zeroed", "not utf-8", "other shape"])
def test_a_damaged_config_is_an_error_with_its_name(tmp_path, how):
    path = finished_run(tmp_path) / "config.yaml"
    whole = path.read_bytes()
    half = len(whole) // 2
    path.write_bytes(
        {
            "cut": whole[:half],
            "zeroed": bytes(len(whole)),
            "half zeroed": whole[:half] + bytes(half),
            "not utf-8": whole[:half] + b"\xff" + whole[half:],
            "other shape": whole[: whole.index(b"\n") + 1] + b"- 1\n",
        }[how]
    )
    with pytest.raises(ValueError, match=f"(?s){tmp_path}/config.yaml|{tmp_path} holds a run of another"):
        RunFolder.check(tmp_path, Settings(CONFIG), overwrite=False)


def test_damaged_lines_of_metrics_are_dropped_and_counted(tmp_path):
    """Of another shape too; the line that a kill left incomplete is none of them."""
    run = RunFolder(finished_run(tmp_path))
    lines = ["[]", '{"loss": 1.0}', '{"step": "2"}', '{"step": 2, "loss": {}}', "[" * 100_000, "\0" * 40]
    run.metrics.write_text(run.metrics.read_text() + "\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match=f"{run.metrics}: 6 damaged"):
        run.drop_after(3)
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2, 3]
    run.metrics.write_text(run.metrics.read_text() + '{"step": 4, "lo')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.drop_after(3)
