"""On a GPU: what the reference decodes, what the trainer sees of it, and a whole run. Skipped where there is none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import GOLDEN, random_prompts, tiny_checkpoint

from models import load_model
from sample import Sampler, SamplingConfig
from train.distributed.accelerator import make_accelerator
from train.learner.batch import Replay
from train.learner.updater import Updater

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]


@pytest.fixture(autouse=True)
def no_tf32():
    """What is compared to 1e-4 below are products in fp32, whatever ran before in this process."""
    kinds = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [kind.allow_tf32 for kind in kinds]
    for kind in kinds:
        kind.allow_tf32 = False
    yield
    for kind, allowed in zip(kinds, before, strict=True):
        kind.allow_tf32 = allowed


@pytest.mark.parametrize("name", ["sdar", "sdar_tied"])
def test_reference_decodes(name):
    model = load_model(GOLDEN / name, device="cuda")
    for case in json.loads((GOLDEN / name / "decode.json").read_text())["cases"]:
        config = SamplingConfig(
            max_new_tokens=case["gen_length"],
            block_size=case["block_size"],
            steps_per_block=case["steps_per_block"],
            strategy=case["strategy"],
            threshold=case["threshold"] if case["threshold"] is not None else 0.9,
            stop_ids=tuple(case.get("stop_ids") or ()),
        )
        (rollout,) = Sampler(model, config).generate([case["prompt_ids"]])
        assert rollout.token_ids == case["token_ids"][: rollout.num_response_tokens]
        assert rollout.step_map == case["step_map"][: rollout.num_response_tokens]


@pytest.mark.parametrize("family", ["sdar", "dream", "llada"])
def test_the_trainer_sees_the_samplers_log_probs_and_the_cpus(family, tmp_path):
    tiny_checkpoint(tmp_path, family)
    prompts = random_prompts([9, 1, 6, 3, 12, 7, 10])
    settings = SamplingConfig(max_new_tokens=12, block_size=4, steps_per_block=4, temperature=1.0, threshold=0.4)
    rollouts = {}
    for device in ("cpu", "cuda"):
        model = load_model(tmp_path, device=device)
        rollouts[device] = Sampler(model, settings).generate(prompts, n=2)
        updater = Updater(model, make_accelerator("no", torch.device(device)))
        batch = Replay.of(model, settings.for_model(model)).batch(rollouts[device], [1.0] * len(rollouts[device]))
        for logp, seen in zip(
            updater.outputs(batch.samples, range(len(batch.samples))), batch.logp_rollout, strict=True
        ):
            assert logp == pytest.approx(seen, abs=1e-4)
    assert [r.token_ids for r in rollouts["cpu"]] == [r.token_ids for r in rollouts["cuda"]]


def test_a_run(tmp_path):
    arguments = ["config=configs/rl_tiny.yaml", f"experiment.output_dir={tmp_path}", "experiment.total_step=2"]
    arguments += ["model.prepare_with=configs/sft_tiny.yaml", "evaluation.max_tasks=16"]
    run = subprocess.run(
        [sys.executable, "rl.py", *arguments], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout.split("final ")[-1])["steps"] == 2
