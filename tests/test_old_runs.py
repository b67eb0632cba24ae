"""Runs that commit 6db0e99 began go on with today's code and end where that commit itself ended."""

import hashlib
import shutil
import tarfile

import pytest
import torch
from end_to_end import read_jsonl, without_clock
from helpers import GOLDEN
from safetensors.torch import load_file

from configs import load_config
from train import rl, sft

FIXTURE = GOLDEN / "runs_6db0e99"
KERNELS = "96081027e38d685c"
"""Digest of `_kernels` where the fixture was made: other machines may round otherwise."""


def _kernels():
    """A digest of what this machine's kernels make of a few products of the model's sizes."""
    generator, numbers = torch.Generator().manual_seed(0), []
    for rows in (1, 4, 12, 48, 160):
        x, w = (torch.randn(shape, generator=generator) for shape in ((rows, 16), (40, 16)))
        numbers += [(x @ w.T).log_softmax(-1), torch.nn.functional.silu(x), (x @ w.T).T @ x]
    return hashlib.blake2b(b"".join(n.numpy().tobytes() for n in numbers), digest_size=8).hexdigest()


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(FIXTURE / "runs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def runs(unpacked, tmp_path, monkeypatch):
    """A copy of the interrupted runs, from whose parent the commands are typed: their config.yaml names `runs`."""
    shutil.copytree(unpacked / "interrupted", tmp_path / "runs", symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def _resume(runs, project):
    run = sft.run if project == "sft" else rl.run
    run(load_config([f"config={runs / project / 'config.yaml'}"]))


def _assert_ended_alike(run, straight):
    exact = _kernels() == KERNELS
    got, want = (without_clock(read_jsonl(folder / "metrics.jsonl")) for folder in (run, straight))
    assert [row["step"] for row in got] == [row["step"] for row in want]
    for row, wanted in zip(got, want, strict=True):
        common = {name: row[name] for name in wanted}
        assert common == (wanted if exact else pytest.approx(wanted, rel=1e-5, abs=1e-5))
    final = run / "ckpt" / "optimized"
    pairs = [(final / "model.safetensors", straight / "model.safetensors")]
    if (straight / "value.safetensors").exists():
        pairs.append((final / "value" / "model.safetensors", straight / "value.safetensors"))
    for mine, theirs in pairs:
        weights, wanted = load_file(mine), load_file(theirs)
        assert weights.keys() == wanted.keys()
        for name in wanted:
            gap = float((weights[name] - wanted[name]).abs().max())
            assert gap <= (0.0 if exact else 1e-6), f"{name} differs by {gap}"


@pytest.mark.parametrize("project", [pytest.param("rl", marks=pytest.mark.slow), "value", "sft"])
def test_a_run_of_6db0e99_resumes_and_ends_where_that_commit_ended(project, runs, unpacked, capsys):
    """RL from step 2 (step 3 is on disk, step 4 is sampled), with and without a value model; SFT within epoch 2."""
    _resume(runs, project)
    printed = capsys.readouterr().out
    assert "resumed from step-00000" in printed
    assert project == "sft" or "step 3: rollouts and rewards are those that the interrupted run left" in printed
    _assert_ended_alike(runs / project, unpacked / "straight" / project)
