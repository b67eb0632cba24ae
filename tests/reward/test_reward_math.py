import threading

import pytest
from built_rewards import built

from reward import grade_math
from reward.math.reward import OptionReward
from reward.math.truth import answer_text
from reward.text import extract_boxed


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1}", "1"),
        (r"first \boxed{1} then \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{5} and \boxed{\frac{1}{2}", "5"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{1, \boxed{2}}", "2"),
        (r"\boxed {7}", "7"),
        (r"\fbox{7}", "7"),
        (r"\\boxed{7}", "7"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{ \left\{ 1 \right. }", r"\left\{ 1 \right."),
        (r"\boxed{}", ""),
        (r"} \boxed{4} {", "4"),
        (r"\boxed 4", "4"),
        (r"the answer is 4", None),
        ("", None),
        (r"\boxed{", None),
    ],
)
def test_last_balanced_box(text, content):
    assert extract_boxed(text) == content


def test_box_search_is_linear():
    assert extract_boxed(r"\boxed{" * 50_000) is None
    assert extract_boxed("\\" * 200_000) is None
    assert extract_boxed("{" * 200_000 + r"\boxed{1}") == "1"


@pytest.mark.parametrize(
    ("given", "true", "same"),
    [
        ("007", "7", True),
        ("1,000", "1000", True),
        ("-3", "3", False),
        ("+3", "3", True),
        ("-0", "0", True),
        ("9" * 5000, "9" * 5000, True),
        ("9" * 5000, "8" * 5000, False),
    ],
)
def test_plain_numbers_need_no_parsing(given, true, same):
    assert grade_math(f"\\boxed{{{given}}}", true) is same


def test_no_box_is_wrong():
    assert grade_math("42", "42") is False
    assert grade_math("", "42") is False


def test_from_a_thread():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(grade_math(r"\boxed{\frac{3}{4}}", "0.75")))
    thread.start()
    thread.join()
    assert seen == [True]


@pytest.mark.parametrize(
    ("answer", "final"),
    [
        ("9*2=18\n#### 18", "18"),
        ("so it is #### $1,234 ", "$1,234"),
        (r"We add: $1+1=2$, so \boxed{2}.", "2"),
        (r"\boxed{7}", "7"),
        ("18", "18"),
        ("####", "####"),
        (12, "12"),
        (0.5, "0.5"),
        (1e22, "1e+22"),
        (True, ""),
        (None, ""),
        (["1"], ""),
        ("proof", ""),
        (r"\text{Proof.}", ""),
        ("notfound", ""),
        ("N/A", ""),
        (float("nan"), ""),
        ("no solution", "no solution"),
    ],
)
def test_what_a_true_answer_says(answer, final):
    assert answer_text(answer) == final


@pytest.mark.slow
def test_what_stands_for_no_answer_earns_nothing():
    assert grade_math(r"\boxed{proof}", "proof") is False
    with built(workers=1) as reward:
        answers = ["proof", "#### 3", "1e+22"]
        boxes = [r"\boxed{proof}", r"\boxed{3}", r"\boxed{10^{22}}"]
        assert reward(["p"] * 3, boxes, ground_truth_answer=answers) == [None, 1.0, 1.0]
        assert reward.stats["reward/no_answer_count"] == 1.0


SOLUTION = "First we count the clips of April, then those of May, which are half as many, and add both to have 72"


def test_true_answers_that_are_whole_solutions_are_reported_before_a_run():
    with built(workers=1) as reward:
        with pytest.raises(ValueError, match=r"2 of 2 true answers are whole solutions.*dataset.columns.*####"):
            reward.check([{"ground_truth_answer": SOLUTION}] * 2)
        with pytest.warns(UserWarning, match="1 of 2 true answers are whole solutions"):
            reward.check([{"ground_truth_answer": SOLUTION}, {"ground_truth_answer": "72"}])
        reward.check([{"ground_truth_answer": f"{SOLUTION} #### 72"}, {"ground_truth_answer": r"\text{Alice and Bob}"}])


def test_true_answers_that_are_no_single_option_are_reported_before_a_run():
    reward = OptionReward()
    with pytest.raises(
        ValueError, match=r"2 of 2 true answers are not the letter of one option.*'A and C'.*data_type=math"
    ):
        reward.check([{"ground_truth_answer": "A and C"}, {"ground_truth_answer": "12"}])
    with pytest.warns(UserWarning, match="1 of 2 true answers are not the letter of one option"):
        reward.check([{"ground_truth_answer": "B"}, {"ground_truth_answer": "A, C"}, {"ground_truth_answer": None}])
    reward.check([{"ground_truth_answer": "(b)"}, {"ground_truth_answer": "D. all of them"}])


def test_reward_of_a_batch():
    with built(data_type="math", workers=1, timeout_seconds=5.0) as reward:
        completions = [r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", r"\boxed{0.6}", "no box", r"\boxed{1}", r"\boxed{1}"]
        answers = ["0.5", "0.5", "0.5", "0.5", None, "  "]
        assert reward(["p"] * 6, completions, ground_truth_answer=answers) == [1.0, 1.0, 0.0, 0.0, None, None]
        assert reward.stats["reward/no_answer_count"] == 2.0
        assert reward(["p"] * 2, [r"\boxed{12}", r"\boxed{\frac{1}{2}}"], ground_truth_answer=[12, 0.5]) == [1.0, 1.0]
        with pytest.raises(ValueError, match="needs the column 'ground_truth_answer'"):
            reward(["p"], ["c"], question=["q"])
        with pytest.raises(ValueError, match="has 1 entries for 2 completions"):
            reward(["p"] * 2, ["c"] * 2, ground_truth_answer=["1"])
