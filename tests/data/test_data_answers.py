"""True answers that no completion can equal are refused when the file is read, or read as what they mean."""

from contextlib import closing

import pytest

from data.tasks import load_tasks
from reward.math import MathGrader, OptionReward

GSM8K = "Natalia sold 9*2=18 clips.\n#### 18"


def rows(*answers):
    return [{"question": "q", "answer": answer} for answer in answers]


def tasks_of(write, answers, data_type):
    return load_tasks(write("a.json", rows(*answers)), data_type=data_type, columns={"ground_truth_answer": "answer"})


@pytest.mark.parametrize("key", [2, 0, "2", 1.0])
def test_an_index_is_no_option(write, key):
    with pytest.raises(ValueError, match=r"field 'ground_truth_answer' is .*expected a letter \(A, B, ...\)"):
        tasks_of(write, ["A", key], "option")


def test_the_text_of_an_option_is_left_out_with_a_warning(write):
    with pytest.warns(UserWarning, match="does not begin with the letter of an option"):
        tasks = tasks_of(write, ["A", "Paris"], "option")
    assert [task.answer for task in tasks] == ["A"]


@pytest.mark.parametrize("key", ["A", "(b)", "C. Paris", r"\text{(D)}", "Answer: E", "选项C", "Ｃ"])
def test_every_spelling_of_a_letter_is_an_option(write, key):
    (task,) = tasks_of(write, [key], "option")
    reward = OptionReward()
    assert reward(["q"], [r"\boxed{Z}"], ground_truth_answer=[task.answer]) == [0.0]


def test_gsm8k_answers_mean_the_number_behind_their_mark(write):
    (task,) = tasks_of(write, [GSM8K], "math")
    with closing(MathGrader(workers=1)) as grader:
        verdicts = grader.grade([(r"\boxed{18}", task.answer), (r"\boxed{9}", task.answer)])
    assert verdicts == [True, False]
    assert task.columns["answer"] == GSM8K


def test_a_mapped_column_is_there_under_both_names(write):
    path = write("a.json", [{"problem": "p", "answer": "3"}])
    (task,) = load_tasks(path, data_type="math", columns={"question": "problem", "ground_truth_answer": "answer"})
    assert task.columns == {"problem": "p", "answer": "3", "question": "p", "ground_truth_answer": "3"}
