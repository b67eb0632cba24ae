"""bin/setup, bin/demo and bin/test in a copy of the repository whose packages are small wheels on this disk."""

import importlib.machinery
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def setup():
    loader = importlib.machinery.SourceFileLoader("bin_setup", str(ROOT / "bin" / "setup"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("bin_setup", loader))
    loader.exec_module(module)
    return module


def write_wheel(folder, name, version, source="ready = True\n"):
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", source)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


@pytest.fixture
def clone(tmp_path):
    """A repository with the real scripts, two requirements files and wheels for them."""
    repository = tmp_path / "repository"
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    shutil.copytree(ROOT / "bin", repository / "bin")
    for name, version in (
        ("torch", "2.13.0"),
        ("torch", "2.11.0"),
        ("tiny", "1.0"),
        ("tiny", "2.0"),
    ):
        write_wheel(wheels, name, version)
    write_wheel(wheels, "pytest", "1.0", "import sys; print('pytest', sys.argv[1:])\n")
    (repository / "requirements.txt").write_text("# comment\ntorch==2.13.0\ntiny==1.0\n")
    (repository / "requirements-dev.txt").write_text("-r requirements.txt\npytest==1.0\n")
    (repository / "rl.py").write_text("import sys, tiny, torch; print(sys.argv[1:])\n")
    gpu = tmp_path / "programs" / "nvidia-smi"
    gpu.parent.mkdir()
    gpu.write_text("#!/bin/sh\n")
    gpu.chmod(0o755)
    return repository


def environment(clone, **more):
    """No active environment, no index, and an nvidia-smi that answers, so that no index of torch is asked for."""
    kept = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "CONDA_PREFIX", "CI")}
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(clone.parent / "wheels"), "PIP_CONFIG_FILE": os.devnull}
    programs = [clone.parent / "programs", Path(sys.base_prefix) / "bin", "/usr/bin", "/bin"]
    return {**kept, **pip, "PATH": ":".join(map(str, programs)), **more}


def call(clone, *command, folder=None, **more):
    return subprocess.run(command, cwd=folder or clone, env=environment(clone, **more), capture_output=True, text=True)


def version_of(python, name):
    code = f"import importlib.metadata as m; print(m.version('{name}'))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


@pytest.mark.long
@pytest.mark.slow
def test_installs_once_and_again_when_requirements_change(clone):
    """Fault 79."""
    first = call(clone, "bin/setup")
    assert first.returncode == 0, first.stderr
    python = clone / ".venv" / "bin" / "python"
    assert first.stdout == f"{python}\n"
    assert version_of(python, "tiny") == "1.0"
    second = call(clone, "bin/setup")
    assert (second.stdout, second.stderr) == (first.stdout, "")
    (clone / "requirements.txt").write_text("torch==2.13.0\ntiny==2.0\n")
    third = call(clone, "bin/setup")
    assert "keeping torch 2.13.0" in third.stderr
    assert version_of(python, "tiny") == "2.0"
    assert call(clone, "bin/setup", "requirements-dev.txt").returncode == 0
    assert version_of(python, "pytest") == "1.0"
    assert call(clone, "bin/setup", "requirements.txt").stderr == ""


STEALING = ["--dist", "worksteal"]


@pytest.mark.slow
def test_demo_and_test_pass_arguments_on_from_any_folder(clone):
    demo = call(clone, clone / "bin" / "demo", "training.seed=1", folder="/")
    assert demo.stdout == "['config=configs/rl_tiny.yaml', 'training.seed=1']\n", demo.stderr
    workers = min(4, len(os.sched_getaffinity(0)))
    fast = call(clone, "bin/test", "tests/data", "-k", "a b").stdout
    assert (
        fast == f"pytest {['-n', f'{workers}', *STEALING, '-m', 'not slow and not long', 'tests/data', '-k', 'a b']}\n"
    )
    slow, more = call(clone, "bin/test", "tests/data", "--slow").stdout, min(4, workers + 1)
    assert slow == f"pytest {['-n', f'{more}', *STEALING, '-m', 'not long', '--timeout', '1200', 'tests/data']}\n"
    assert call(clone, "bin/test", "tests/data", CI="true").stdout == slow


@pytest.mark.long
@pytest.mark.slow
def test_killed_set_up_is_repaired_by_the_next_call(clone):
    child = subprocess.Popen([clone / "bin" / "setup"], env=environment(clone), stderr=subprocess.PIPE, process_group=0)
    unfinished = clone / ".venv" / ".setup-unfinished"
    while not unfinished.exists():
        time.sleep(0.01)
    time.sleep(1.0)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    assert unfinished.exists()
    again = call(clone, "bin/setup")
    assert again.returncode == 0, again.stderr
    assert "an earlier set-up did not finish" in again.stderr
    assert version_of(again.stdout.strip(), "tiny") == "1.0"
    assert not unfinished.exists()


@pytest.mark.long
@pytest.mark.slow
def test_failed_installation_says_so_and_is_repaired(clone):
    (clone / "requirements.txt").write_text("torch==2.13.0\nabsent==1.0\n")
    failed = call(clone, "bin/demo")
    assert failed.returncode == 1
    assert "could not install the requirements" in failed.stderr
    (clone / "requirements.txt").write_text("torch==2.13.0\ntiny==1.0\n")
    assert call(clone, "bin/demo").returncode == 0


@pytest.mark.long
@pytest.mark.slow
def test_active_environment_is_used_and_keeps_its_torch(clone):
    active = clone.parent / "mine"
    subprocess.run([sys.executable, "-m", "venv", active], check=True)
    python = active / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "torch==2.11.0"], env=environment(clone), check=True)
    done = call(clone, "bin/setup", VIRTUAL_ENV=str(active))
    assert done.stdout == f"{python}\n", done.stderr
    assert "keeping torch 2.11.0" in done.stderr
    assert (version_of(python, "torch"), version_of(python, "tiny")) == ("2.11.0", "1.0")
    assert not (clone / ".venv").exists()


def test_folder_that_is_no_environment_is_left_alone(clone):
    (clone / ".venv").mkdir()
    (clone / ".venv" / "mine").touch()
    refused = call(clone, "bin/setup")
    assert refused.returncode == 1
    assert ".venv exists and is no virtual environment: move it away" in refused.stderr
    assert (clone / ".venv" / "mine").exists()


def test_active_environment_without_python(clone):
    refused = call(clone, "bin/setup", VIRTUAL_ENV="/nowhere")
    assert refused.returncode == 1
    assert "the active environment /nowhere has no Python of 3.11 or newer that works" in refused.stderr


def test_python_without_venv(setup, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setup, "OWN_PREFIX", tmp_path / ".venv")
    monkeypatch.setattr(setup, "succeeds", lambda *command: False)
    with pytest.raises(SystemExit):
        setup.make_own(setup.Environment(tmp_path / ".venv"))
    assert "`apt-get install python3-venv`" in capsys.readouterr().err


def test_old_python_gives_way_to_a_newer_one(setup, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(setup.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(setup.os, "execv", lambda path, command: started.append(path))
    monkeypatch.setattr(setup.shutil, "which", lambda name: f"/opt/{name}" if name == "python3.12" else None)
    setup.restart_with_newer_python()
    assert started == ["/opt/python3.12"]
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit):
        setup.restart_with_newer_python()
    assert "Python 3.11 or newer is needed" in capsys.readouterr().err


def test_cpu_build_of_torch_only_without_a_gpu_and_with_an_index_that_answers(setup, monkeypatch):
    answers = {"gpu": False, "index": True}

    class Reply:
        def close(self):
            pass

    def urlopen(url, timeout):
        assert timeout <= 5
        if not answers["index"]:
            raise OSError("no such host")
        return Reply()

    monkeypatch.setattr(setup.sys, "platform", "linux")
    monkeypatch.setattr(setup.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(setup, "succeeds", lambda *command: answers["gpu"])
    monkeypatch.setattr(setup.urllib.request, "urlopen", urlopen)
    assert setup.torch_index_options() == ["--index-url", "https://download.pytorch.org/whl/cpu"]
    answers["index"] = False
    assert setup.torch_index_options() == []
    answers.update(gpu=True, index=True)
    assert setup.torch_index_options() == []


def test_requirements_files_agree(setup):
    """One version of a package in all three files, every one pinned, torch found by the name that set-up looks for."""
    pinned = {}
    for path in sorted(ROOT.glob("requirements*.txt")):
        for line in setup.read_requirements(path):
            name, version = line.split("==")
            assert pinned.setdefault(name, version) == version, line
    assert "torch" in pinned
