"""Evaluation, RL and fine-tuning on rows with pictures (data_type mmu): files, lists and traces of the recipes."""

import json

import pytest
from end_to_end import text_checkpoint, write_json
from helpers import GOLDEN
from PIL import Image, ImageDraw

from configs import load_config
from models.vision.images import image_digest
from sample.viewer.page import main as write_trace
from train import evaluation, rl, sft

pytestmark = pytest.mark.slow


REWARD = """
def letters(completions, *, pictures, **columns):
    assert all(path.endswith(".png") for (path,) in pictures)
    return [float(len(set(text))) for text in completions]
"""


@pytest.fixture
def shop(tmp_path):
    """A LLaDA-V checkpoint, pictures of which one is damaged, and tasks and examples about them."""
    text_checkpoint(tmp_path / "model", "lladav", max_position_embeddings=1024)
    for i in range(4):
        image = Image.new("RGB", (16 + 8 * i, 24), "white")
        ImageDraw.Draw(image).rectangle((2, 2, 4 + 3 * i, 9), fill="red")
        image.save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:60])
    rows = [
        {"question": f"{i}=", "ground_truth_answer": str(i), "image": f"{i}.png", "task_id": f"t{i}"} for i in range(4)
    ]
    write_json(tmp_path / "tasks.json", rows)
    pairs = [{"prompt": "<image>\n12=", "response": str(i), "image": f"{i}.png"} for i in range(4)]
    write_json(tmp_path / "pairs.json", pairs)
    return tmp_path


def arguments(shop, config, **more):
    given = {
        "model.pretrained_model": shop / "model",
        "dataset.image_root": shop,
        "experiment.output_dir": shop / "runs",
        "training.mixed_precision": "no",
        "model.device": "cpu",
    } | more
    return [f"config=configs/{config}.yaml", *(f"{key}={value}" for key, value in given.items())]


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


DECODING = {"max_new_tokens": 4, "steps": 4, "block_size": 4, "cache": "none", "num_response_per_task": 2}


def decoding(section):
    return {f"{section}.{name}": value for name, value in DECODING.items()}


def test_an_evaluation_about_pictures(shop):
    given = decoding("rollout") | {
        "dataset.eval_dataset": shop / "tasks.json",
        "rollout.strategy": "low_confidence_static",
    }
    results = evaluation.run(load_config(arguments(shop, "lladav_eval", **given), command="eval"))
    (metrics,) = results.values()
    assert metrics["tasks"] == 3.0
    samples = rows(shop / "runs" / "lladav_eval" / "samples.jsonl")
    assert len(samples) == 6 and all(-200 in row["prompt_ids"] for row in samples)
    listed = json.loads((shop / "runs" / "lladav_eval" / "images.json").read_text())
    assert listed == {image_digest(shop / f"{i}.png"): str(shop / f"{i}.png") for i in range(3)}
    assert [row["images"] for row in samples[::2]] == [[digest] for digest in listed]
    assert write_trace([str(shop / "runs" / "lladav_eval"), "-o", str(shop / "trace.html")]) == 0
    assert (shop / "trace.html").read_text().count("data:image/png") == 3


@pytest.mark.parametrize("method", ["TraceRL", "coupled"])
def test_two_rl_steps_about_pictures(shop, method):
    """Sampler and trainer see the same features: their log-probabilities are equal."""
    given = decoding("rollout") | {
        "dataset.template": "plain",
        "dataset.train_dataset": shop / "tasks.json",
        "evaluation.eval_dataset": "null",
        "experiment.deepspeed_file": "null",
        "experiment.total_step": 2,
        "experiment.save_every": 2,
        "rollout.num_task_per_step": 3,
        "training.method": method,
        "training.shrink": 1,
        "training.gradient_checkpointing_enable": "false",
        "training.min_accuracy": 0.0,
        "training.max_accuracy": 1.0,
        "reward.function": f"{shop / 'reward.py'}:letters",
    }
    (shop / "reward.py").write_text(
        "def letters(completions, **columns):\n    return [float(len(set(c))) for c in completions]\n"
    )
    rl.run(load_config(arguments(shop, "rl_lladav", **given), command="rl"))
    folder = shop / "runs" / "rl_lladav"
    steps = [row for row in rows(folder / "metrics.jsonl") if "loss" in row]
    assert len(steps) == 2 and all(row["updates_skipped"] == 0 for row in steps)
    if method == "TraceRL":
        assert all(abs(row["mismatch_kl"]) < 1e-5 for row in steps)
    assert all(-200 in row["prompt_ids"] and len(row["images"]) == 1 for row in rows(folder / "rollouts.jsonl"))
    assert json.loads((folder / "images.json").read_text())


def test_fine_tuning_about_pictures(shop):
    given = {
        "dataset.optimization_data": shop / "pairs.json",
        "experiment.deepspeed_file": "null",
        "training.num_train_epochs": 2,
        "training.gradient_checkpointing_enable": "false",
        "training.max_gen_length": 8,
    }
    summary = sft.run(load_config(arguments(shop, "sft_lladav", **given), command="sft"))
    assert summary["steps"] > 0 and summary["nll"] > 0


def mmada(shop):
    """MMaDA's checkpoint with the image tokenizer that is no part of it."""
    return {
        "model.pretrained_model": GOLDEN / "mmada_mmu",
        "model.vq_model_path": GOLDEN / "magvit",
        "model.image_resolution": 32,
        "dataset.template": "plain",
    }


def test_an_evaluation_about_pictures_that_are_codes(shop):
    given = decoding("rollout") | mmada(shop) | {"dataset.eval_dataset": shop / "tasks.json"}
    given["rollout.strategy"] = "low_confidence_static"
    evaluation.run(load_config(arguments(shop, "mmada_v_eval", **given), command="eval"))
    folder = shop / "runs" / "mmada_v_eval"
    samples = rows(folder / "samples.jsonl")
    assert len(samples) == 6 and all(min(row["prompt_ids"]) >= 0 and len(row["images"]) == 1 for row in samples)
    assert samples[0]["prompt_ids"] != samples[2]["prompt_ids"]
    assert set(json.loads((folder / "images.json").read_text())) == {row["images"][0] for row in samples}
    assert write_trace([str(folder), "-o", str(shop / "trace.html")]) == 0
    assert (shop / "trace.html").read_text().count("data:image/png") == 3


def test_an_rl_step_about_pictures_that_are_codes(shop):
    given = (
        decoding("rollout")
        | mmada(shop)
        | {
            "dataset.train_dataset": shop / "tasks.json",
            "evaluation.eval_dataset": "null",
            "experiment.deepspeed_file": "null",
            "experiment.total_step": 1,
            "rollout.num_task_per_step": 3,
            "training.method": "TraceRL",
            "training.shrink": 1,
            "training.gradient_checkpointing_enable": "false",
            "training.min_accuracy": 0.0,
            "training.max_accuracy": 1.0,
            "reward.function": f"{shop / 'reward.py'}:letters",
        }
    )
    (shop / "reward.py").write_text(REWARD)
    rl.run(load_config(arguments(shop, "rl_mmada_v", **given), command="rl"))
    (step,) = [row for row in rows(shop / "runs" / "rl_mmada_v" / "metrics.jsonl") if "loss" in row]
    assert step["updates_skipped"] == 0 and abs(step["mismatch_kl"]) < 1e-5
