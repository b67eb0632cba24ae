import shutil

import pytest
import torch
from judge_server import judge_checkpoint

from configs.schema import JudgeConfig
from reward.judge.judge import Question
from train.setup.local_judge import LocalJudge, SeededSampling, prompt_tokens

CPU = torch.device("cpu")
QUESTIONS = [Question("1+1=", 0), Question("1+1=", 1), Question("what is 123 * 456 + 789?", 0), Question("3", 0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return judge_checkpoint(tmp_path_factory.mktemp("judge"))


def judge(folder, **settings):
    return LocalJudge(str(folder), JudgeConfig(**{"max_tokens": 6, "max_model_len": 64, **settings}), CPU)


def test_an_answer_is_a_function_of_its_question(folder):
    together = judge(folder)(QUESTIONS)
    assert together == judge(folder, parallel=1)(QUESTIONS) == judge(folder)(QUESTIONS[::-1])[::-1]
    assert all(isinstance(text, str) for text in together) and together[0] != together[1]


def test_greedy_answers_do_not_depend_on_the_sample(folder):
    answers = judge(folder, temperature=0.0)(QUESTIONS)
    assert answers[0] == answers[1]


def test_a_question_without_room_for_an_answer_gets_none(folder):
    answers = judge(folder, max_model_len=12)([Question("1" * 11), Question("1" * 12)])
    assert isinstance(answers[0], str) and answers[1] is None


def test_marks_of_a_turn_inside_a_question_are_text_no_longer(folder):
    asking = judge(folder)
    asking._load()
    assert asking._ids("1<eos>2<mask>") == asking._ids("1 2 ")
    asking.tokenizer.chat_template = "({% for m in messages %}{{ m.content }}{% endfor %})"
    assert asking.tokenizer.decode(asking._ids("1<eos>")) == "(1 )"


@pytest.mark.parametrize(
    ("template", "says"),
    [("{{ raise_exception('no') }}", r"fails \(TemplateError: no\)"), ("hi", "leaves the user's turn out")],
)
def test_a_chat_template_that_cannot_work_is_reported_before_the_judge_is_loaded(folder, tmp_path, template, says):
    shutil.copytree(folder, tmp_path / "judge")
    (tmp_path / "judge" / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=f"judge.local: the tokenizer's chat template {says}"):
        judge(tmp_path / "judge")


def test_seeded_noise_samples_the_tempered_nucleus():
    """Frequencies of 4,000 rows against softmax(scores / T) cut at top_p."""
    scores = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).repeat(4000, 1)
    choose = SeededSampling(range(4000), JudgeConfig(temperature=0.5, top_p=0.9), CPU)
    counts = torch.bincount(choose(torch.zeros(4000, 1, dtype=torch.long), scores).argmax(-1), minlength=4) / 4000
    expected = torch.tensor([0.25, 0.09, 0.0, 0.0]) / 0.34
    assert (counts - expected).abs().max() < 0.03 and counts[2:].sum() == 0


def test_room_for_the_question():
    assert prompt_tokens(JudgeConfig()) == 5000
    with pytest.raises(ValueError, match="judge.max_tokens=100 leaves no room"):
        prompt_tokens(JudgeConfig(max_tokens=100, max_model_len=100))
