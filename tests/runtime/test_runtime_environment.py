"""dllm-env: what a bug report needs, without secrets. The Dockerfiles name what there is."""

import re

import pytest

import dllm_commands
from runtime import environment
from runtime.environment import REPOSITORY, report


@pytest.fixture
def few(monkeypatch):
    """Without the commands that take a while."""
    monkeypatch.setattr(environment, "_output", lambda *command: "abc1234" if "rev-parse" in command else "")


def test_the_report_names_commit_packages_and_what_differs(few, monkeypatch):
    monkeypatch.setattr(environment, "installed", lambda name: "0.1" if name == "peft" else "not installed")
    found = list(report())
    texts = dict(found)
    assert "commit abc1234" in texts["checkout"] and texts["optional"] == "none"
    assert any(name == "differs" and text.startswith("peft 0.1, tested with") for name, text in found)
    assert "torch" in texts and "#" not in texts["packages"]


def test_only_variables_that_hold_no_secret_are_shown(few, monkeypatch, capsys):
    shown = {"NCCL_DEBUG": "INFO", "MLP_WORKER_NUM": "2", "HF_HOME": "/hf", "CUDA_VISIBLE_DEVICES": "0"}
    hidden = {
        "HF_TOKEN": "s3cret",
        "WANDB_API_KEY": "s3cret",
        "SLURM_JWT_TOKEN": "s3cret",
        "SLURM_JWT": "s3cret",
        "MLP_ACCESS_PASS": "s3cret",
        "MY_RANK": "s3cret",
    }
    for name, value in (shown | hidden).items():
        monkeypatch.setenv(name, value)
    dllm_commands.environment()
    text = capsys.readouterr().out
    assert "s3cret" not in text and all(f"{name}={value}" in text for name, value in shown.items())


def test_a_torch_that_cannot_be_imported_is_told(few, monkeypatch):
    monkeypatch.setitem(environment.sys.modules, "torch", None)
    assert "cannot be imported" in dict(report())["torch"]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_a_dockerfile_copies_and_runs_what_there_is(name):
    """hadolint finds nothing in them (run by hand: it is no package of this project)."""
    text = (REPOSITORY / name).read_text()
    copied = [path for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for path in line.split()]
    assert copied and all((REPOSITORY / path).exists() for path in copied)
    scripts = (REPOSITORY / "pyproject.toml").read_text()
    for command in re.findall(r"dllm-(?!cpu)\w+", re.sub(r"useradd.*|.*docker build.*", "", text)):
        assert f'{command} = "dllm_commands:' in scripts
    for script in re.findall(r"python (\S+\.py)", text):
        assert (REPOSITORY / script).is_file()
    assert re.search(r"^FROM python:3\.11", text, re.M) and "\nUSER 1000\n" in text
