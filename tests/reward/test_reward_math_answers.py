import json
import multiprocessing
import random
import time
from pathlib import Path

import pytest
from built_rewards import built
from math_answers import BOMBS, DIFFERENT, EQUAL

from reward import grade_math
from reward.math.equal import answers_equal
from reward.math.expression import same_expression
from reward.math.parse import parsed
from reward.math.quantity import quantity_of
from reward.math.reward import MathGrader, quick_verdict
from reward.math.spelling import tidy

DATA = Path(__file__).resolve().parents[3] / "shared" / "real" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")

# Rows of the data sets without a true answer (null or empty): there is nothing to grade against, so they get no reward.
WITHOUT_ANSWER = {"MATH_train": [886, 1009, 5328, 5330]}


def verdict(prediction, answer):
    quick = quick_verdict(prediction, answer)
    return answers_equal(prediction, answer) if quick is None else quick


@pytest.mark.parametrize(("prediction", "answer"), EQUAL)
def test_equal(prediction, answer):
    assert verdict(prediction, answer)


@pytest.mark.parametrize(("prediction", "answer"), DIFFERENT)
def test_different(prediction, answer):
    assert not verdict(prediction, answer)


def true_answers():
    for name in ("AIME2024", "GSM8K", "GSM8K_train", "MATH500", "MATH_train"):
        rows = json.loads((DATA / f"{name}.json").read_text())
        for index, row in enumerate(rows):
            yield name, index, row["ground_truth_answer"]


@needs_data
def test_every_true_answer_equals_itself():
    without: dict[str, list[int]] = {}
    wrong = []
    for name, index, answer in true_answers():
        if not answer:
            without.setdefault(name, []).append(index)
        elif not grade_math(f"so the answer is \\boxed{{{answer}}}", answer):
            wrong.append((name, index, answer))
    assert wrong == []
    assert without == WITHOUT_ANSWER


def unequal_to_itself(answers):
    """The expressions among answers that do not equal themselves, parsed on both sides."""
    parts = [parsed(quantity_of(tidy(answer)).head) for answer in answers]
    assert sum(part is not None for part in parts) > 0.8 * len(answers)
    return [
        answer
        for answer, part in zip(answers, parts, strict=True)
        if part is not None and not same_expression(part, part)
    ]


@pytest.mark.slow
@needs_data
def test_true_answers_equal_themselves_when_parsed():
    answers = sorted({answer for *_, answer in true_answers() if answer and not answer.lstrip("-").isdigit()})
    assert unequal_to_itself(random.Random(0).sample(answers, 60)) == []


@pytest.mark.long
@needs_data
@pytest.mark.slow
def test_all_true_answers_equal_themselves_when_parsed():
    answers = sorted({answer for *_, answer in true_answers() if answer})
    assert unequal_to_itself(answers) == []


@pytest.mark.slow
def test_bombs_cost_their_own_answer_only():
    with built(data_type="math", workers=2, timeout_seconds=0.5) as reward:
        completions, answers = [], []
        for bomb in BOMBS:
            completions += [f"\\boxed{{{bomb}}}", r"\boxed{\frac{1}{2}}", f"\\boxed{{{len(completions)}.50}}"]
            answers += ["5", "0.5", f"{len(completions) - 3}.5"]
        started = time.monotonic()
        assert reward([""] * len(completions), completions, ground_truth_answer=answers) == [0.0, 1.0, 1.0] * len(BOMBS)
        assert reward.stats["reward/timeout_count"] >= 3
        assert time.monotonic() - started < 60


@pytest.mark.parametrize("text", [r"\frac{5}{0}", "05:00", r"\frac{0}{0}"])
def test_a_division_by_zero_is_no_expression(text):
    assert parsed(text) is None


def test_options():
    with built(data_type="option") as reward:
        boxes = ["A", "(A)", r"\text{A}", "a", "A. 42", "B", "A or B", "ABCD", ""]
        completions = [*(f"\\boxed{{{box}}}" for box in boxes), "A"]
        assert reward([""] * 10, completions, ground_truth_answer=["A"] * 10) == [1.0] * 5 + [0.0] * 5
        assert reward([""], [r"\boxed{C}"], ground_truth_answer=["(C)"]) == [1.0]
        assert reward([""], [r"\boxed{C}"], ground_truth_answer=[None]) == [None]


def spin():
    while True:
        pass


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_data
def test_a_busy_machine_gives_the_same_verdicts():
    rng = random.Random(0)
    answers = sorted({answer for *_, answer in true_answers() if answer})
    pairs = []
    for index in range(2000):
        answer = rng.choice(answers)
        given = rng.choice([answer.replace("frac", "dfrac") + " + 0", rng.choice(answers), f"\\text{{{answer}}}"])
        pairs.append((f"\\boxed{{{BOMBS[index % 4] if index % 250 == 7 else given}}}", answer))
    quiet = MathGrader(cpu_seconds=3.0)
    expected = quiet.grade(pairs)
    quiet.close()
    context = multiprocessing.get_context("spawn")
    hogs = [context.Process(target=spin, daemon=True) for _ in range(16)]
    for hog in hogs:
        hog.start()
    busy = MathGrader(cpu_seconds=3.0)
    try:
        assert busy.grade(pairs) == expected
    finally:
        busy.close()
        for hog in hogs:
            hog.kill()
            hog.join()
    assert 500 < sum(map(bool, expected)) < 1900 and None not in expected
