"""Every answer of tests/golden/field (after public bug reports) has the verdict that it must have, and so have further
answers of each kind."""

import json
from pathlib import Path

import pytest
from case_files import answers

from reward import grade_math
from reward.math import MathGrader, OptionReward
from reward.math.equal import answers_equal
from reward.math.reward import quick_verdict

FIELD = Path(__file__).parents[1] / "golden" / "field"
KINDS, OPTIONS = answers("math"), answers("options")
LINES = [
    json.loads(line) for name in ("fails", "passes") for line in (FIELD / f"{name}.jsonl").read_text().splitlines()
]
BOXED = [line for line in LINES if line["area"] in ("math", "option") and "completion" in line["input"]]
MATH, OPTION = ([line for line in BOXED if line["area"] == area] for area in ("math", "option"))


@pytest.fixture(scope="module")
def graded():
    """The verdicts on all of MATH by id, from one grader."""
    grader = MathGrader(workers=2)
    pairs = [(line["input"]["completion"], line["input"]["ground_truth_answer"]) for line in MATH]
    verdicts = grader.grade(pairs)
    grader.close()
    return {line["id"]: verdict for line, verdict in zip(MATH, verdicts, strict=True)}


def test_the_lines_are_those_that_were_handed_over():
    assert (len(MATH), len(OPTION)) == (68 + 152, 7 + 16)


@pytest.mark.parametrize("line", MATH, ids=lambda line: line["id"])
def test_math_of_the_field(graded, line):
    assert graded[line["id"]] is line["right"]


def option(completion, answer):
    return OptionReward()(["p"], [completion], ground_truth_answer=[answer])[0]


@pytest.mark.parametrize("line", OPTION, ids=lambda line: line["id"])
def test_options_of_the_field(line):
    assert option(line["input"]["completion"], line["input"]["ground_truth_answer"]) == line["right"]


def verdict(given, true):
    quick = quick_verdict(given, true)
    return answers_equal(given, true) if quick is None else quick


@pytest.mark.parametrize("kind", KINDS)
def test_answers_of_a_kind(kind):
    same, different = KINDS[kind]
    assert [pair for pair in same if not verdict(*pair)] == []
    assert [pair for pair in different if verdict(*pair)] == []


@pytest.mark.parametrize("kind", OPTIONS)
def test_options_of_a_kind(kind):
    same, different = OPTIONS[kind]
    wrong = [(given, true) for given, true in same if option(f"\\boxed{{{given}}}", true) != 1.0]
    wrong += [(given, true) for given, true in different if option(f"\\boxed{{{given}}}", true) != 0.0]
    assert wrong == []


@pytest.mark.parametrize(
    ("completion", "answer", "same"),
    [
        (r"So $\boxed 5$.", "5", True),
        (r"so \boxed 42.", "42", True),
        (r"$\boxed -3$", "-3", True),
        (r"$\boxed\frac{1}{2}$", "0.5", True),
        (r"$\boxed\frac12$", "0.5", True),
        (r"$\boxed\pi$", r"\pi", True),
        (r"$\boxed x$", "x", True),
        (r"\boxed{3}, no: $\boxed 4$", "4", True),
        (r"So $\boxed 5$.", "6", False),
        (r"\boxed{3}, no: $\boxed 4$", "3", False),
        (r"\boxed{5}. I put it in \boxed as asked.", "5", True),
        (r"put the answer in \boxed and stop", "a", False),
        (r"\boxed{5", "5", False),
    ],
)
def test_a_box_without_braces(completion, answer, same):
    assert grade_math(completion, answer) is same
