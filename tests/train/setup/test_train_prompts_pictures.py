"""Pictures of tasks and examples in training: lengths, encoding, and what cannot be used. A stand-in for a family's
vision takes a picture as one id for each pixel of its width."""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from end_to_end import text_checkpoint, write_json
from PIL import Image

import train.setup.prompts as prompts
from configs import merge
from data import Example, Task
from data.templates import Format, Writer
from models import Picture, load_model
from models.families.llada import LLADA
from models.vision.images import ImageFault
from sample.viewer.pictures import LIST
from train.learner.picture_log import PictureLog
from train.setup.doors import method_of
from train.setup.examples import see as see_examples
from train.setup.examples import tokenise as tokenise_examples
from train.setup.pictures import Eyes, image_root, usable
from train.setup.prompts import PromptSource, load_prompts, reward_columns, see, tokenise

CODES = 30
SEEING = replace(LLADA, vision=lambda *_: None)


class Stripes:
    """Codes begin at id 30; the text has those below."""

    image_id, fits, in_front = None, ("pad",), False

    def __init__(self):
        self.encoded = 0

    def fit(self, pictures):
        return "pad"

    def outline(self, size_wh, fit, resolution):
        return Picture([CODES] * size_wh[0])

    def encode(self, image, fit, resolution, digest):
        self.encoded += 1
        return Picture([CODES + x % 9 for x in range(image.width)], digest=digest)

    def place(self, pieces, pictures, encode):
        ids = encode(pieces[0])
        for piece, picture in zip(pieces[1:], pictures, strict=True):
            ids = [*ids, *picture.ids, *encode(piece)]
        return ids


@pytest.fixture
def model(tmp_path):
    model = load_model(text_checkpoint(tmp_path / "model", "llada"))
    model.vision, model.text_vocab_size = Stripes(), CODES
    model.spec = replace(model.spec, family=SEEING)
    return model


@pytest.fixture
def pictures(tmp_path):
    for width in (2, 5):
        Image.new("RGB", (width, 3)).save(tmp_path / f"{width}.png")
    Image.effect_noise((40, 40), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    (tmp_path / "none.png").write_text("no picture")
    return tmp_path


def row(name, question="1=", **more):
    return {"question": question, "ground_truth_answer": "2", "image": name, **more}


def loaded(model, folder, rows, **training):
    given = {"dataset": {"template": "plain"}, "training": training, "rollout": {"max_new_tokens": 8}}
    config = merge(given)
    path = write_json(folder / "tasks.json", rows)
    return load_prompts(config, PromptSource(str(path), "mmu", 0, config.rollout), model)


def test_pictures_are_outlined_when_prompts_are_loaded_and_encoded_when_they_are_sampled(model, pictures):
    first, second = loaded(model, pictures, [row("2.png"), row("5.png", "1<image>2=")])
    assert model.vision.encoded == 0
    assert (first.ids[:2], first.picture_tokens, second.picture_tokens) == ([CODES] * 2, 2, 5)
    assert second.ids.count(CODES) == 5 and second.text == "1<image>2=" and second.images == {}
    seen = see([first, second], Eyes(model))
    assert model.vision.encoded == 2 and [len(prompt.ids) for prompt in seen] == [len(first.ids), len(second.ids)]
    assert seen[1].ids != second.ids and seen[1].sampled.ids == seen[1].ids
    assert list(seen[0].images.values()) == [str(pictures / "2.png")]


def test_picture_tokens_are_no_tokens_of_the_prompts_text(model, pictures):
    prompts = loaded(model, pictures, [row("5.png"), row("5.png", "1" * 9 + "=")], max_prompt_len=4)
    assert [prompt.task.id for prompt in prompts] == ["1"] and len(prompts[0].ids) > 4


def test_a_prompt_with_pictures_beyond_the_models_positions_names_both_numbers(model, pictures):
    Image.new("RGB", (300, 1)).save(pictures / "300.png")
    with pytest.raises(ValueError, match=r"the 303 tokens of .*prompt 1 \(300 of its pictures\) exceed the 256 pos"):
        loaded(model, pictures, [row("300.png")])


def test_bad_pictures_are_left_out_and_counted_by_cause(model, pictures, caplog):
    """Those whose header tells at the start; those that only decoding shows when they are sampled."""
    rows = [row("2.png"), row("none.png"), row("gone.png"), row("cut.png")]
    with caplog.at_level(logging.WARNING):
        prompts = loaded(model, pictures, rows)
    assert [prompt.task.id for prompt in prompts] == ["1", "4"]
    assert "2 of 4 have pictures that cannot be used" in caplog.text
    assert "missing (1: 3: " in caplog.text and "not a picture (1: 2: " in caplog.text
    with caplog.at_level(logging.WARNING):
        assert [prompt.task.id for prompt in see(prompts, Eyes(model))] == ["1"]
    assert "truncated (1: 4: " in caplog.text
    with pytest.raises(ValueError, match="all 1 have pictures that cannot be used.*dataset.image_root"):
        loaded(model, pictures, [row("gone.png")])


def test_the_folder_of_pictures(tmp_path):
    dataset, file = merge({}).dataset, tmp_path / "tasks.json"
    assert image_root(dataset, file, LLADA, "math") is None
    with pytest.raises(ValueError, match="mmu is about pictures, which llada models do not take"):
        image_root(dataset, file, LLADA, "mmu")
    assert image_root(dataset, file, SEEING) == tmp_path
    with pytest.raises(ValueError, match="dataset.image_root=nowhere: there is no such folder"):
        image_root(merge({"dataset": {"image_root": "nowhere"}}).dataset, file, SEEING)


def test_ids_of_a_picture_that_are_none_of_the_models_are_refused(model):
    writer = Writer(Format("llada", "mmu", "plain"), model.tokenizer)
    prompt = tokenise(Task("1", "1=", None, {}, ((CODES, CODES + 1),)), model, writer)
    assert prompt.ids[:2] == [CODES, CODES + 1] and see([prompt], Eyes(model))[0].images == {}
    for ids in ((3, CODES), (CODES, 99999)):
        with pytest.raises(ValueError, match="are no pictures of this llada model, whose codes are 30 to"):
            tokenise(Task("1", "1=", None, {}, (ids,)), model, writer)


def test_examples_with_pictures_are_outlined_and_then_encoded(model, pictures, caplog):
    config = merge({"training": {"method": "random_masking", "max_prompt_len": 300}})
    given = [str(pictures / name) for name in ("5.png", "gone.png", "cut.png")]
    examples = [Example("<image>\n1=", "2", None, images=(path,)) for path in given]
    with caplog.at_level(logging.WARNING):
        samples = tokenise_examples(examples, model, config, method_of(config.training, "sft"))
        assert [sample.index for sample in samples] == [0, 2] and model.vision.encoded == 0
        (seen,) = see_examples(samples, Eyes(model))
    assert "missing (1: example 1: " in caplog.text and "truncated (1: example 2: " in caplog.text
    assert seen.prompt_ids == seen.seen.ids and seen.prompt_ids != samples[0].prompt_ids


def test_drawn_pictures_are_decoded_so_many_at_a_time(monkeypatch):
    """No device holds the pixels of a whole step."""
    monkeypatch.setattr(prompts, "_DECODED_AT_ONCE", 2)
    counts = []

    class Draws:
        def need_drawing(self):
            return SimpleNamespace(codes=range(10, 20))

        def decode_images(self, codes_BN):
            counts.append(len(codes_BN))
            return (codes_BN / 5.0 - 1.0)[:, None, :, None].expand(-1, 3, -1, 2)

    rollouts = [SimpleNamespace(token_ids=[10 + i, 19]) for i in range(5)]
    images = prompts.drawn_images(rollouts, Draws())
    assert counts == [2, 2, 1] and [image.getpixel((0, 0))[0] for image in images] == [0, 25, 51, 76, 102]


def test_pictures_that_are_not_kept_are_made_again_when_they_are_wanted(model, pictures, monkeypatch):
    """An evaluation has those of the prompts at work in memory, and no others."""
    made = []

    def encode(image, fit, resolution, digest):
        made.append(digest)
        return Picture([CODES] * image.width, lambda: torch.ones(1), digest, source="pixels")

    monkeypatch.setattr(model.vision, "encode", encode)
    (prompt,) = loaded(model, pictures, [row("2.png")])
    for keep, times in ((True, 1), (False, 2)):
        made.clear()
        (seen,) = see([prompt], Eyes(model), keep=keep)
        assert len(made) == 1 and seen.seen.pictures[0].source == "pixels" and len(made) == times


def test_rewards_get_the_pictures_of_tasks_that_have_some():
    """A text task has no such column."""
    for images, expected in (((), None), (("a.png", (1, 2), b"x"), [("a.png", b"x")])):
        task = Task("1", "Q", None, {"question": "Q"}, images)
        prompt = type("P", (), {"task": task})
        rollout = type("R", (), {"token_ids": [], "finish_reason": "stop", "num_steps": 1, "suffix_ids": []})
        assert reward_columns([prompt], [rollout], None).get("pictures") == expected


def test_the_list_of_a_runs_pictures(tmp_path):
    """Files by their path, bytes kept in the folder; what is listed stays when the run goes on."""
    log = PictureLog(tmp_path)
    log.add([{}, {"a": str(tmp_path / "x.png")}])
    log.add([{"b": b"bytes", "a": "another"}])
    expected = {"a": str((tmp_path / "x.png").resolve()), "b": "images/b"}
    assert json.loads((tmp_path / LIST).read_text()) == expected == PictureLog(tmp_path).files
    assert (tmp_path / "images" / "b").read_bytes() == b"bytes"
    (tmp_path / LIST).write_text("[")
    assert PictureLog(tmp_path).files == {}


def test_without_faults_nothing_is_said(caplog):
    assert usable([1, 2], lambda i: i + 1, str, "items") == [2, 3] and not caplog.text

    def bad(item):
        raise ImageFault("x", "missing")

    assert usable([1, 2], bad, str, "items", needed=False) == [] and "items: 2 of 2 have pictures" in caplog.text
    with pytest.raises(ValueError, match="items: all 2"):
        usable([1, 2], bad, str, "items")
