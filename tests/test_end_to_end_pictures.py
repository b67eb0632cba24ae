"""LLaDA-V on pictures that the tests draw, from its original layout through SFT, RL, a value model and eval; saved,
read, resumed after a kill."""

import numpy as np
import pytest
import torch
from end_to_end import EVAL, RL, SFT, Workshop, read_jsonl, text_checkpoint, write_json
from PIL import Image
from safetensors.torch import load_file

from configs import load_config
from models import load_model
from runtime.monitor import Monitor
from train import evaluation, rl, sft

SEES = ("vision_tower", "mm_projector", "image_newline")
SHOWN = ["training.max_prompt_len=40", "dataset.data_type=mmu", "evaluation.data_type=mmu", "evaluation.block_size=4"]
UNUSED = ("post_layernorm", "k_proj.bias")
"""Of the tower: a norm that is not read, and biases that every key of a query shares, which a softmax does not see."""


class Stop(Exception):
    """Stands in for a kill."""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.setattr(Monitor, "curves", lambda monitor: None)
    made = Workshop(tmp_path, text_checkpoint(tmp_path / "model", "lladav", max_position_embeddings=512))
    for i in range(4):
        values = np.random.default_rng(i).integers(0, 256, (9 + 8 * i, 30 - 6 * i, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / f"{i}.png")
    rows = [
        {"question": f"{i}=", "ground_truth_answer": str(i), "task_id": f"task-{i}", "image": f"{i % 4}.png"}
        for i in range(8)
    ]
    made.tasks, made.test = (write_json(tmp_path / name, rows) for name in ("shown.json", "asked.json"))
    pairs = [{"prompt": f"<image>\n{i}=", "response": f"\\boxed{{{i}}}", "image": f"{i % 4}.png"} for i in range(6)]
    made.pairs = write_json(tmp_path / "pairs.json", pairs)
    return made


def moved(before, after):
    first, second = (load_file(folder / "model.safetensors") for folder in (before, after))
    assert first.keys() == second.keys()
    return {name for name in first if not torch.equal(first[name], second[name])}, set(first)


def assert_moved(before, after, part):
    """Every weight of the language model moved, of vision those of the trained part alone."""
    found, every = moved(before, after)
    sees = {name for name in every if any(word in name for word in SEES)}
    trained = {name for name in sees if part == "all" or (part == "projector" and "vision_tower" not in name)}
    assert every - sees <= found
    assert {n for n in trained if not any(word in n for word in UNUSED)} <= found & sees <= trained


def run_rl(shop, *arguments, **options):
    return rl.run(load_config(shop.arguments(RL, *SHOWN, *arguments, **options)))


@pytest.mark.slow
def test_two_steps_of_rl_with_pictures(shop, tmp_path):
    run_rl(shop, "training.train_vision=projector", "evaluation.eval_dataset=''")
    rows = [row for row in read_jsonl(shop.runs / "rl" / "metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2] and all(row["mismatch_kl"] < 1e-9 for row in rows)
    trained = shop.runs / "rl" / "ckpt" / "optimized"
    assert_moved(shop.model, trained, "projector")
    load_model(trained).save(tmp_path / "again")
    assert not moved(trained, tmp_path / "again")[0]
    rollouts = read_jsonl(shop.runs / "rl" / "rollouts.jsonl")
    assert all(len(row["images"]) == 1 and -200 in row["prompt_ids"] for row in rollouts)


@pytest.mark.slow
def test_a_dry_run_refuses_what_the_run_would_of_vision(shop):
    with pytest.raises(ValueError, match="model.image_fit=crop: lladav models .* use auto, anyres or pad"):
        run_rl(shop, "model.image_fit=crop", "dry_run=true")
    with pytest.raises(ValueError, match="training.train_vision=all beside adapters"):
        run_rl(shop, "training.train_vision=all", "lora.rank=2", "dry_run=true")


def cut(path):
    """The picture's file without its end: its header is whole, its pixels are not."""
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.slow
def test_a_step_without_a_picture_that_can_be_used_is_skipped_and_counted(shop, caplog, capsys):
    """One task a step, half of them with a broken picture: the run goes on to its end."""
    for i in (0, 2):
        cut(shop.folder / f"{i}.png")
    given = ["evaluation.eval_dataset=''", "rollout.num_task_per_step=1", "experiment.total_step=6"]
    run_rl(shop, *given)
    rows = read_jsonl(shop.runs / "rl" / "metrics.jsonl")
    skipped = [row["step"] for row in rows if row["groups"] == 0]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and 0 < len(skipped) < 6
    assert capsys.readouterr().out.count("is skipped: its tasks have no pictures to be used") == len(skipped)
    assert caplog.text.count("tasks: 1 of 1 have pictures that cannot be used") == len(skipped)
    rollouts = read_jsonl(shop.runs / "rl" / "rollouts.jsonl")
    assert {row["step"] for row in rollouts} == {1, 2, 3, 4, 5, 6} - {*skipped}


@pytest.mark.slow
def test_an_update_of_fine_tuning_without_a_picture_that_can_be_used_is_skipped_and_counted(shop, capsys):
    for i in (0, 1, 3):
        cut(shop.folder / f"{i}.png")
    given = ["training.num_train_epochs=1", "training.batch_size_lm=1", "training.max_prompt_len=400"]
    sft.run(load_config(shop.arguments(SFT, *given, "training.method=random_masking")))
    rows = read_jsonl(shop.runs / "sft" / "metrics.jsonl")
    assert len(rows) == 6 and sum("loss" in row for row in rows) == 1
    assert sum(row["updates_skipped"] for row in rows) == 5
    assert capsys.readouterr().out.count("is skipped: its examples have no pictures to be used") == 5


@pytest.mark.long
@pytest.mark.parametrize("method", ["TraceRL", "coupled", "random_masking"])
@pytest.mark.parametrize("part", ["false", "all"])
def test_rl_by_every_method_and_eval(shop, method, part):
    shown = [f"training.method={method}", f"training.train_vision={part}", "training.mask_times_per_sample=2"]
    run_rl(shop, *shown)
    trained = shop.runs / "rl" / "ckpt" / "optimized"
    assert_moved(shop.model, trained, part)
    asked = [f"model.pretrained_model={trained}", "rollout.block_size=4", "dataset.data_type=mmu", SHOWN[0]]
    metrics = evaluation.run(load_config(shop.arguments(EVAL, *asked)))
    assert all(values["tokens_per_forward"] > 0 for values in metrics.values())
    assert len(read_jsonl(shop.runs / "eval" / "samples.jsonl")) == 8 * 2


@pytest.mark.long
def test_a_value_model_learns_from_pictures(shop):
    run_rl(shop, f"model.value_base_model={shop.model}", "evaluation.eval_dataset=''", "training.batch_size_lm=100000")
    folder = shop.runs / "rl" / "ckpt"
    first, second = (load_file(folder / f"step-00000{n}" / "value" / "model.safetensors") for n in (1, 2))
    still = {name for name in first if torch.equal(first[name], second[name])}
    assert still == {name for name in first if "lm_head" in name or any(word in name for word in SEES)}


@pytest.mark.long
@pytest.mark.parametrize("method", ["semi-ar", "random_masking"])
def test_fine_tuning_with_pictures(shop, method):
    arguments = [f"training.method={method}", "training.num_train_epochs=2", "training.max_prompt_len=400"]
    sft.run(load_config(shop.arguments(SFT, *arguments, "training.train_vision=all", "training.block_size=4")))
    rows = read_jsonl(shop.runs / "sft" / "metrics.jsonl")
    assert all(row["grad_norm"] > 0 and row["updates_skipped"] == 0 for row in rows)
    assert_moved(shop.model, shop.runs / "sft" / "ckpt" / "optimized", "all")


@pytest.mark.long
def test_adapters_learn_from_pictures(shop):
    run_rl(shop, "lora.rank=2", "evaluation.eval_dataset=''")
    rows = [row for row in read_jsonl(shop.runs / "rl" / "metrics.jsonl") if "loss" in row]
    assert all(row["grad_norm"] > 0 and row["mismatch_kl"] < 1e-9 for row in rows)


@pytest.mark.long
def test_a_run_with_pictures_that_is_killed_goes_on_as_one_that_is_not(shop, monkeypatch):
    quiet = ["evaluation.eval_dataset=''", "training.train_vision=projector", "experiment.total_step=3"]
    run_rl(shop, *quiet, "experiment.project=straight")
    log, seen = rl.Run.log, []

    def dies_in_step_3(self, step, *given):
        seen.append(step)
        if seen == [1, 2, 3]:
            raise Stop
        return log(self, step, *given)

    monkeypatch.setattr(rl.Run, "log", dies_in_step_3)
    for _ in range(2):
        try:
            run_rl(shop, *quiet, "experiment.project=killed")
        except Stop:
            continue
    assert seen == [1, 2, 3, 3]
    straight, killed = (shop.runs / name / "ckpt" / "optimized" for name in ("straight", "killed"))
    assert not moved(straight, killed)[0]
