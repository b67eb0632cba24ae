"""RL and evaluation of text to image: a reward of the decoded picture."""

import json

import numpy as np
import pytest
from end_to_end import EVAL, RL, read_jsonl, write_json
from helpers import GOLDEN
from PIL import Image

from configs import load_config
from data.tiny_drawings import TRAINED, drawing_reward, drawings, shuffled_names
from train import evaluation, rl

BRIGHT = """
def brightness(prompts, completions, *, completion_images, question, **columns):
    assert all(image.size == (16, 16) and image.mode == "RGB" for image in completion_images)
    return [sum(image.convert("L").getdata()) / 256 / 255 for image in completion_images]
"""
DRAWN = ["output=image", "max_new_tokens=16", "steps_per_block=4", "strategy=low_confidence_static", "block_size=null"]


@pytest.fixture
def drawing(shop):
    shop.model = GOLDEN / "mmada_mmu"
    shop.reward.write_text(BRIGHT)
    shop.tasks = write_json(shop.folder / "tasks.json", [{"question": "a red dot"}, {"question": "cat <|eot_id|>"}])
    shop.test = write_json(shop.folder / "test.json", [{"question": "two squares"}])
    return shop


def arguments_of(shop, text, *more, sections=("rollout",)):
    given = [f"{section}.{choice}" for section in sections for choice in DRAWN]
    vision = [f"model.vq_model_path={GOLDEN / 'magvit'}"]
    return shop.arguments(text, *vision, *given, *more, reward="brightness")


@pytest.mark.slow
def test_rl_of_two_steps_rewards_the_pixels_and_replays_each_picture_exactly(drawing):
    arguments = arguments_of(drawing, RL, "evaluation.top_k=0", sections=("rollout", "evaluation"))
    summary = rl.run(load_config(arguments, command="rl"))
    rows = read_jsonl(drawing.runs / "rl" / "metrics.jsonl")
    steps = [row for row in rows if "mismatch_kl" in row]
    assert len(steps) == 2 and all(row["mismatch_kl"] < 1e-9 for row in steps)
    rollouts = read_jsonl(drawing.runs / "rl" / "rollouts.jsonl")
    assert all(len(row["canvas_ids"]) == 16 and row["suffix_ids"] == [261] for row in rollouts)
    assert all(275 <= i < 339 for row in rollouts for i in row["canvas_ids"])
    assert {row["completion"] for row in rollouts} == {"[picture of 16 codes]"}
    cat = next(row for row in rollouts if row["prompt"].startswith("cat"))
    assert 274 not in cat["prompt_ids"] and cat["prompt_ids"][:2] == [264, 256]
    assert len({row["reward"] for row in rollouts}) > 8 and all(0.0 < row["reward"] < 1.0 for row in rollouts)
    assert "reward_after" in summary


@pytest.mark.slow
def test_evaluation_grades_pictures_under_guidance(drawing):
    arguments = arguments_of(drawing, EVAL, "rollout.guidance=1.5")
    (found,) = evaluation.run(load_config(arguments, command="eval")).values()
    assert 0.0 < found["reward"] < 1.0
    rows = read_jsonl(drawing.runs / "eval" / "samples.jsonl")
    assert rows[0]["completion"] == "[picture of 16 codes]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["rollout.max_new_tokens=15"], "15 codes are no square picture"),
        (["model.vq_model_path=null"], "set model.vq_model_path"),
        ([f"model.vq_model_path={GOLDEN / 'mmada'}"], "holds no MAGVIT-v2"),
        ([f"model.pretrained_model={GOLDEN / 'llada'}", "model.vq_model_path=null"], "llada models draw no pictures"),
    ],
)
def test_what_cannot_be_drawn_is_known_before_a_model_is_loaded(drawing, changes, message):
    with pytest.raises(ValueError, match=message):
        rl.check(load_config(arguments_of(drawing, RL, *changes), command="rl"))


def test_a_drawing_earns_its_own_name_alone():
    names = list(drawings())
    images = [Image.fromarray((drawings()[name] * 255).round().astype("uint8")) for name in names]

    def rewards(images, wanted):
        return drawing_reward([], [], completion_images=images, question=wanted)

    assert rewards(images, names) == [1.0] * 64
    assert rewards(images, names[1:] + names[:1]) == [0.0] * 64
    noise = np.random.default_rng(0).normal(0.0, 20.0, (16, 16, 3))
    noisy = Image.fromarray((np.asarray(images[0]) + noise).clip(0, 255).astype("uint8"))
    blank = Image.new("RGB", (16, 16))
    assert rewards([noisy, blank], [names[0], names[0]]) == [1.0, 0.0]


def test_every_name_is_trained_or_tested():
    names = shuffled_names(1)
    assert sorted(names) == sorted(drawings()) and len(names) == 64 and TRAINED == 48
    assert names != shuffled_names(2) and json.dumps(names) == json.dumps(shuffled_names(1))
