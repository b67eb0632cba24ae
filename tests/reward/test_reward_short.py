"""Short answers to questions about pictures, and answers without a box."""

import pytest

from configs.schema import ExecuteConfig, RewardConfig
from reward import build_reward
from reward.math.short import short_verdict
from reward.text import stated_answer


@pytest.mark.parametrize(
    ("completion", "in_box", "answer"),
    [
        (r"so \boxed{3}. The answer is 4", False, "3"),
        (r"so \boxed{3}", True, "3"),
        ("The answer is 4", True, None),
        ("<think>the answer is 4</think> 5", False, "5"),
        ("I take it that the result is 5, so the final answer is: **B**\nas one sees", False, "B**"),
        ("The answer is\nNo", False, "No"),
        ("red", False, "red"),
        ("", False, None),
        ("<think>five</think>", False, None),
    ],
)
def test_what_a_completion_gives_as_its_answer(completion, in_box, answer):
    assert stated_answer(completion, in_box) == answer


@pytest.mark.parametrize(
    ("answer", "true", "right"),
    [
        ("Yes", "yes", True),
        ("No, there is none.", "no", True),
        ("y", "Yes", True),
        ("yes or no", "yes", False),
        ("Yes, no", "yes", False),
        ("nothing", "no", False),
        ("no idea", "no", False),
        ("yes", "no", False),
        ("C.Three", "C", True),
        ("(c) Three", "C", True),
        ("The answer is C", "(C)", True),
        ("A and C", "C", False),
        ("a cat", "A", False),
        ("Red.", "red", True),
        ("red. It is bright", "red", True),
        ("a red car", "red", None),
        ("7", "8", None),
    ],
)
def test_a_short_answer_is_right_by_the_kind_of_the_true_one(answer, true, right):
    """None: only mathematics can tell."""
    assert short_verdict(answer, true) is right


@pytest.mark.parametrize(
    ("answer", "true", "right"),
    [
        ("4 square", "4 circle", False),
        ("There are 4 squares.", "4 circles", False),
        (r"4\text{ squares}", "4 circles", False),
        ("4 red squares", "4 red circles", False),
        ("1,204 trucks", "1,204 cars", False),
        ("4 circles", "4 circle", None),
        ("4 boxes", "4 box", None),
        ("4 cherries", "4 cherry", None),
        ("4 red circles", "4 circles", None),
        ("4 circles in total", "4 circles", None),
        ("4 in total", "4 circles", None),
        ("4", "4 circles", None),
        ("4 squares", "4", None),
        ("4 hours", "240 minutes", None),
    ],
)
def test_a_number_of_other_things_is_wrong(answer, true, right):
    assert short_verdict(answer, true) is right


@pytest.mark.parametrize(
    ("answer", "tolerance", "right"),
    [("104", 0.05, True), ("$105", 0.05, True), ("95.0", 0.05, True), ("106", 0.05, None), ("104", 0.0, None)],
)
def test_a_number_is_right_within_the_tolerance(answer, tolerance, right):
    assert short_verdict(answer, "100", tolerance) is right


@pytest.mark.slow
def test_answers_about_pictures_are_graded_with_and_without_a_box():
    """Boxed or not, by yes and no, letters, numbers, words and mathematics; a task without an answer is left out."""
    completions = ["Yes.", r"\boxed{Yes}", "B. two", "103", r"it is \boxed{\frac12}", "0.5", "a dog", "x"]
    true = ["yes", "yes", "B", "100", "0.5", r"\frac{1}{2}", "cat", None]
    for in_box, rewards in (
        (False, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, None]),
        (True, [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, None]),
    ):
        settings = RewardConfig(answer_must_in_box=in_box, number_tolerance=0.05, workers=1)
        with build_reward(settings, ExecuteConfig(), "mmu") as reward:
            assert reward([""] * 8, completions, ground_truth_answer=true) == rewards


def test_a_letter_counts_without_a_box_where_the_config_says_so():
    for in_box, expected in ((True, [0.0, 1.0]), (False, [1.0, 1.0])):
        with build_reward(RewardConfig(answer_must_in_box=in_box), ExecuteConfig(), "option") as reward:
            assert reward(["", ""], ["B", r"\boxed{B}"], ground_truth_answer=["B", "B"]) == expected


@pytest.mark.parametrize(
    ("answer", "true", "verdict"),
    [("no", "No. 5", None), ("No. 7", "No. 5", None), ("**Yes**, there is.", "yes", True), ("No.", "no", True)],
)
def test_a_number_sign_is_no_answer_and_marks_are_no_text(answer, true, verdict):
    assert short_verdict(answer, true) is verdict
