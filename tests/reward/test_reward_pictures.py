"""Rewards that look at pictures: captions, and judges that are sent them."""

import base64
import io

import pytest
from judge_server import serving
from PIL import Image

from configs.schema import ExecuteConfig, JudgeConfig, RewardConfig
from reward import build_reward
from reward.base import Reward
from reward.judge.api import ApiJudge
from reward.judge.judge import Question
from reward.judge.pictures import data_url
from reward.judge.preference import JudgeReward
from reward.judge.process import ProcessReward, Response
from reward.pictures import CaptionReward, DrawnReward


def encoded(kind, colour="red"):
    file = io.BytesIO()
    Image.new("RGB", (4, 3), colour).save(file, kind)
    return file.getvalue()


class Always(Reward):
    """A verifier that finds everything right."""

    def score(self, prompts, completions, columns):
        assert len(completions) == len(columns["pictures"])
        return [1.0] * len(completions)

    def check(self, rows):
        self.checked = len(rows)


def test_captions_are_scored_by_similarity_and_all_else_by_the_verifier():
    asked = []

    def similarity(pictures, texts):
        asked.append((pictures, texts))
        return [0.3, -0.2]

    reward = CaptionReward(Always(), similarity)
    pictures = [("a.png",), ("b.png",), ("c.png",), ()]
    flags = [True, False, True, True]
    got = reward(["p"] * 4, ["w", "x", "y", "z"], pictures=pictures, is_caption=flags)
    assert got == [0.3, 1.0, 0.0, None]
    assert asked == [(["a.png", "c.png"], ["w", "y"])] and reward.stats["reward/no_picture_count"] == 1.0
    reward.check([{"is_caption": True}, {"is_caption": False}, {}])
    assert reward.verifier.checked == 2
    assert CaptionReward(Always(), None)(["p"], ["x"], pictures=[()]) == [1.0]


def test_captions_without_a_model_are_an_error_before_the_run():
    with build_reward(RewardConfig(workers=1), ExecuteConfig(), "mmu") as reward:
        with pytest.raises(ValueError, match="1 of 2 tasks are captions .is_caption.: set reward.clip_model"):
            reward.check([{"is_caption": True}, {"ground_truth_answer": "2"}])
        reward.check([{"ground_truth_answer": "2"}])


def test_drawn_pictures_are_scored_by_how_near_they_are_to_their_descriptions():
    seen = []

    def similarity(pictures, texts):
        seen.append((pictures, texts))
        return [0.25, -0.1]

    reward = DrawnReward(Always(), similarity)
    reward.check([{"question": "a cat", "completion_images": None}])
    images = [Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2))]
    assert reward(["a cat", "a dog"], ["", ""], completion_images=images) == [0.25, 0.0]
    assert seen == [(images, ["a cat", "a dog"])]
    with pytest.raises(ValueError, match="responses are pictures, which nothing grades: set reward.clip_model"):
        DrawnReward(Always(), None).check([{"question": "a cat", "completion_images": None}])


def test_a_picture_is_sent_as_it_is_where_endpoints_take_its_format(tmp_path):
    for kind, sent in (("PNG", "png"), ("JPEG", "jpeg"), ("BMP", "png")):
        (tmp_path / "picture").write_bytes(encoded(kind))
        url = data_url(str(tmp_path / "picture"))
        assert url.startswith(f"data:image/{sent};base64,") and url == data_url(encoded(kind))
        content = base64.b64decode(url.partition(",")[2])
        assert (content == encoded(kind)) == (kind != "BMP")
        assert Image.open(io.BytesIO(content)).getpixel((0, 0))[0] > 200


def test_a_file_that_would_start_a_program_is_no_picture():
    """Pillow opens EPS by Ghostscript."""
    for kind in ("EPS", "ICO"):
        with pytest.raises(OSError, match="cannot identify image file"):
            data_url(encoded(kind))


def test_an_endpoint_is_sent_the_pictures_unless_it_reads_text_alone(tmp_path):
    with serving() as server:
        settings = {"api": server.url, "model": "judge", "attempts": 1}
        questions = [Question("q", 0, (encoded("PNG"),)), Question("r"), Question("s", 0, (str(tmp_path / "gone"),))]
        assert ApiJudge(JudgeConfig(**settings))(questions) == ["\\boxed{1}", "\\boxed{1}", None]
        contents = sorted((request["messages"][0]["content"] for request in server.requests), key=len, reverse=True)
        picture, text = contents[0]
        assert picture["image_url"]["url"] == data_url(encoded("PNG")) and text == {"type": "text", "text": "q"}
        assert contents[1] == "r"
        assert ApiJudge(JudgeConfig(**settings, pictures=False))(questions[:1]) == ["\\boxed{1}"]
        assert server.requests[-1]["messages"][0]["content"] == "q"


def test_responses_to_the_same_words_about_other_pictures_are_not_compared():
    asked = []

    def judge(questions):
        asked.extend(questions)
        return ["\\boxed{1}"] * len(questions)

    pictures = [("a",), ("a",), ("b",), ("b",), ((1, 2),)]
    got = JudgeReward(judge, mode="pairwise")(["p"] * 5, ["1", "2", "3", "4", "5"], pictures=pictures)
    assert got[4] is None and len(asked) == 4 and {question.pictures for question in asked} == {("a",), ("b",)}
    JudgeReward(judge)(["p"], ["1"], pictures=[("c",)])
    assert asked[-1].pictures == ("c",)


def test_a_judge_of_steps_sees_the_questions_pictures():
    asked = []

    def judge(questions):
        asked.extend(questions)
        return ["\\boxed{1}"] * len(questions)

    process = ProcessReward(judge, lambda ids: str(ids), chunk_tokens=1, samples=1)
    responses = [Response("q", [1, 2], [1, 2], pictures=("a",)), Response("q", [1], [1])]
    process(responses, group_size=2)
    assert [question.pictures for question in asked] == [("a",), ("a",), ()]
