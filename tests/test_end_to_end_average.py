"""Runs that keep a running mean of their weights."""

import json

import pytest
import torch
from end_to_end import EVAL, RL, SFT
from safetensors.torch import load_file

from configs import load_config
from models import load_model
from train import evaluation, rl, sft
from train.distributed.kind import check_engine

NO_EVALUATION = "evaluation.eval_dataset=''"


def weights_of(folder, link="optimized"):
    return load_file(folder / "ckpt" / link / "model.safetensors")


def run_sft(shop, project, updates, *arguments):
    typed = [f"experiment.project={project}", f"training.max_steps={updates}", "experiment.save_every_updates=1"]
    sft.run(load_config(shop.arguments(SFT, *typed, *arguments), command="sft"))
    return shop.runs / project


@pytest.mark.slow
def test_a_running_mean_is_saved_beside_the_weights_and_resumes(shop):
    """Of three updates: m = d m + (1 - d) w from the first weights, the same in parts, and the weights as without."""
    decay = "training.ema_decay=0.75"
    plain, whole = run_sft(shop, "plain", 3), run_sft(shop, "whole", 3, decay)
    run_sft(shop, "parts", 2, decay)
    parts = run_sft(shop, "parts", 3, decay)
    mean = {name: weight.detach().clone() for name, weight in load_file(shop.model / "model.safetensors").items()}
    for step in (1, 2, 3):
        for name, weight in load_file(whole / "ckpt" / f"step-00000{step}" / "model.safetensors").items():
            mean[name] = mean[name] + 0.25 * (weight - mean[name])
    for folder in (whole, parts):
        found = weights_of(folder, "optimized_ema")
        assert all(torch.allclose(found[name], mean[name], atol=1e-6) for name in found) and len(found) == len(mean)
    exact = zip(weights_of(whole, "optimized_ema").items(), weights_of(parts, "optimized_ema").values(), strict=True)
    assert all(torch.equal(weight, other) for (_, weight), other in exact)
    trained = weights_of(plain)
    assert all(torch.equal(trained[name], weight) for name, weight in weights_of(whole).items())
    assert any(not torch.equal(trained[name], weight) for name, weight in weights_of(whole, "optimized_ema").items())
    typed = [f"model.pretrained_model={whole}/ckpt/optimized_ema", "dataset.max_tasks=1"]
    evaluation.run(load_config(shop.arguments(EVAL, *typed), command="eval"))
    assert json.loads((shop.runs / "eval" / "results.json").read_text())


@pytest.mark.slow
def test_the_mean_of_bf16_weights_is_of_their_fp32_masters_and_adapters_have_one(shop):
    keys = ["training.ema_decay=0.5", NO_EVALUATION, "experiment.total_step=1", "experiment.project=half"]
    rl.run(load_config(shop.arguments(RL, *keys, "training.mixed_precision=bf16"), command="rl"))
    first, last = load_file(shop.model / "model.safetensors"), weights_of(shop.runs / "half")
    mean = weights_of(shop.runs / "half", "optimized_ema")
    moved = {name: (last[name] - first[name], mean[name] - first[name]) for name in mean}
    assert all(weight.dtype == torch.float32 for weight in mean.values())
    assert any(0 < its.norm() < whole.norm() for whole, its in moved.values())
    adapters = run_sft(shop, "lora", 1, "training.ema_decay=0.5", "lora.rank=2")
    assert load_model(adapters / "ckpt" / "optimized_ema", device="cpu").family == "sdar"


def test_a_mean_of_sharded_weights_is_refused(shop, monkeypatch):
    typed = ["training.ema_decay=0.9", "experiment.deepspeed_file=1_node_2_cpus_fsdp2", "experiment.processes=2"]
    config = load_config(shop.arguments(SFT, *typed), command="sft")
    with pytest.raises(ValueError, match="training.ema_decay=0.9 under FSDP2: no process has the whole fp32 weights"):
        check_engine(config, shop.model)
