"""On a GPU: what `benchmarks/gpu.py` holds right, and a whole run. Skipped where there is none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_steps import correct
from benchmarks.gpu_steps.record import Setup

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]


@pytest.mark.parametrize("step", correct.STEPS, ids=[step.name for step in correct.STEPS])
def test_what_the_benchmark_checks(step):
    """The CPU's tokens, the trainer's log-probabilities, decodes of the reference, captured steps, bf16."""
    figures = {figure.name: figure for figure in step.figures}
    found = {name: value for name, value, *_ in step.run(Setup(torch.device("cuda")))}
    assert found.keys() == figures.keys()
    assert not [(name, value) for name, value in found.items() if figures[name].missed_by(value)]


def test_a_run(tmp_path):
    arguments = ["config=configs/rl_tiny.yaml", f"experiment.output_dir={tmp_path}", "experiment.total_step=2"]
    arguments += ["model.prepare_with=configs/sft_tiny.yaml", "evaluation.max_tasks=16"]
    run = subprocess.run(
        [sys.executable, "rl.py", *arguments], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout.split("final ")[-1])["steps"] == 2
