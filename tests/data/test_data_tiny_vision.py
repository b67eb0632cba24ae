"""The built-in task about pictures: its files, its tokenizer, and a step of its recipe."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from end_to_end import read_jsonl

from configs import load_config
from data import tiny, tiny_vision
from data.templates import chat_family
from models import load_model
from reward import build_reward
from runtime.monitor import Monitor
from train import rl, sft

MODEL = Path(__file__).parents[2] / "configs" / "tiny_vision_model"


@pytest.fixture
def small(monkeypatch):
    sizes = {name: size // 50 for name, size in tiny_vision.SIZES.items()}
    for name, size in sizes.items():
        monkeypatch.setitem(tiny_vision.SIZES, name, size)
    return sizes


def test_a_picture_shows_what_its_answer_says():
    """So many places have ink, and each kind of shape has a number of pixels of its own."""
    choose, pixels = random.Random(3), {}
    for _ in range(60):
        image, answer = tiny_vision.picture(choose)
        inked = np.asarray(image).max(2) >= 150
        count, shape = answer.split()
        cells = inked.reshape(3, 8, 3, 8).sum((1, 3))
        assert (cells > 0).sum() == tiny_vision.COUNTS.index(count) + 1
        pixels.setdefault(shape, set()).update(cells[cells > 0].tolist())
    assert {shape: len(sizes) for shape, sizes in pixels.items()} == dict.fromkeys(tiny_vision.SHAPES, 1)
    assert len(set.union(*pixels.values())) == 4


def test_careless_answers_have_the_right_number_and_two_in_five_another_shape():
    choose = random.Random(5)
    said = [tiny_vision.careless("four circle", choose).split() for _ in range(2000)]
    assert {count for count, _ in said} == {"four"} and {shape for _, shape in said} == set(tiny_vision.SHAPES)
    assert sum(shape != "circle" for _, shape in said) / 2000 == pytest.approx(0.4, abs=0.03)


def test_only_the_sft_is_answered_carelessly(tmp_path, small, monkeypatch):
    def answers(folder):
        files = tiny_vision.write_tiny_vision(tmp_path / folder, seed=4)
        rows = {name: json.loads(file.read_text()) for name, file in files.items()}
        return {name: [row.get("response") or row["ground_truth_answer"] for row in of] for name, of in rows.items()}

    careless = answers("a")
    monkeypatch.setattr(tiny_vision, "WRONG_SHAPES", 0.0)
    true = answers("b")
    assert [name for name in true if true[name] != careless[name]] == ["tiny_vision_sft"]


@pytest.mark.slow
def test_number_and_shape_both_count():
    """No answer but the right one earns a reward, whatever else the reward forgives."""
    names = [f"{count} {shape}" for count in tiny_vision.COUNTS for shape in tiny_vision.SHAPES]
    said = [*names, *tiny_vision.COUNTS, *tiny_vision.SHAPES, "4", "4 circle", "square four", ""]
    config = load_config(["config=configs/rl_tiny_vision.yaml"])
    with build_reward(config.reward, config.execute, config.dataset.data_type) as reward:
        for true in ("four circle", "one cross"):
            earned = reward([""] * len(said), said, ground_truth_answer=[true] * len(said))
            assert [answer for answer, points in zip(said, earned, strict=True) if points] == [true]


def test_a_seed_gives_the_same_rows_and_no_picture_occurs_twice(tmp_path, small):
    first, again = (tiny_vision.write_tiny_vision(tmp_path / name, seed=4) for name in "ab")
    seen = set()
    for name, size in small.items():
        assert first[name].read_bytes() == again[name].read_bytes()
        for row in json.loads(first[name].read_text()):
            content = (tmp_path / "a" / row["image"]).read_bytes()
            assert content == (tmp_path / "b" / row["image"]).read_bytes()
            seen.add(content)
        assert len(json.loads(first[name].read_text())) == size
    assert len(seen) == sum(small.values())
    assert (
        tiny_vision.write_tiny_vision(tmp_path / "c", seed=5)["tiny_vision_test"].read_bytes()
        != first["tiny_vision_test"].read_bytes()
    )


def test_the_tokenizer_is_what_the_code_writes_and_a_prompt_is_short(tmp_path):
    tiny.write_tokenizer(tmp_path, tiny_vision.WORDS)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((MODEL / name).read_text())
    model = load_model(MODEL, random_init_seed=0)
    assert len(model.tokenizer) == model.hf_config.vocab_size
    text = chat_family("lladav").conversation([("user", f"<image>\n{tiny_vision.QUESTION}")])
    image, answer = tiny_vision.picture(random.Random(1))
    prompt = model.prompt(text, [image])
    unknown = model.tokenizer.unk_token_id
    assert len(prompt.ids) < 40 and unknown not in prompt.ids and len(model.tokenizer(answer).input_ids) == 2


@pytest.mark.slow
def test_a_step_of_the_recipe(tmp_path, monkeypatch, small):
    monkeypatch.setattr(Monitor, "curves", lambda monitor: None)
    where = [f"experiment.output_dir={tmp_path / 'runs'}", f"dataset.folder={tmp_path}", "experiment.threads=1"]
    sft.run(load_config(["config=configs/sft_tiny_vision.yaml", *where, "training.max_steps=2"]))
    few = ["rollout.num_task_per_step=4", "evaluation.num_response_per_task=1", "experiment.total_step=1"]
    summary = rl.run(load_config(["config=configs/rl_tiny_vision.yaml", *where, *few]))
    assert 0.0 <= summary["accuracy_after"] <= 1.0
    (step,) = [row for row in read_jsonl(tmp_path / "runs" / "rl_tiny_vision-1" / "metrics.jsonl") if "groups" in row]
    assert step["groups"] == 4 and step.get("mismatch_kl", 0.0) < 1e-9
