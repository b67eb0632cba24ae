"""All of HumanEval and MBPP: every task can be graded, right solutions pass, wrong ones fail."""

import functools
import json
from pathlib import Path

import pytest
from mbpp_solutions import SOLUTIONS
from two_sides import judge

from reward import Verdict, grade_code
from reward.code.plan import plan_tests
from reward.code.reward import CodeGrader
from reward.code.sandbox import INSTALL_HINT, find_isolation

DATA = Path(__file__).resolve().parents[3] / "shared" / "real" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")
needs_sandbox = pytest.mark.skipif(find_isolation() is None, reason=f"no sandbox here: {INSTALL_HINT}")


@functools.cache
def rows(name):
    return json.loads((DATA / f"{name}.json").read_text())


def human_eval(take):
    return [row for index, row in enumerate(rows("HumanEval")) if index in take]


HELPED = {32, 38, 50}  # their tests call functions that only the prompt holds


def programs(rows, body=None):
    return [(row["prefix"] + (row["canonical_solution"] if body is None else body), row) for row in rows]


@pytest.mark.slow
@needs_data
@needs_sandbox
@pytest.mark.parametrize(
    "take", [pytest.param({0, 66, *HELPED}, id="some"), pytest.param(range(164), id="all", marks=pytest.mark.slow)]
)
def test_solutions_of_human_eval_pass(take):
    tasks = human_eval(take)
    verdicts = CodeGrader().grade(programs(tasks))
    assert [row["task_id"] for row, verdict in zip(tasks, verdicts, strict=True) if not verdict.passed] == []


@pytest.mark.slow
@needs_data
@needs_sandbox
def test_wrong_programs_fail_human_eval():
    verdicts = CodeGrader().grade(programs(human_eval({0, 66, *HELPED}), "    return None\n"))
    assert {verdict.status for verdict in verdicts} <= {"wrong", "error"}


@needs_data
@pytest.mark.slow
def test_wrong_programs_fail_all_of_human_eval():
    statuses = [
        judge(code, row["test_list"], row["prefix"]) for code, row in programs(rows("HumanEval"), "    return\n")
    ]
    assert {status for (status,) in statuses} <= {"wrong", "error"}


@needs_data
@needs_sandbox
def test_a_helper_of_the_prompt_cannot_be_replaced():
    """HumanEval 32 checks poly(xs, find_zero(xs)): with the program's own poly, everything would be a zero."""
    (row,) = human_eval({32})
    program = "def find_zero(xs): return 0.0\ndef poly(xs, x): return 0.0\n"
    assert grade_code(program, row).status == "wrong"


@pytest.mark.slow
@needs_data
def test_all_of_mbpp_can_be_split():
    entries = [plan_tests(row["test_list"]).entries for row in rows("MBPP")]
    assert [names for names in entries if len(names) != 1] == [["is_tree_balanced", "root", "root1", "root2"]]


def mbpp_tests(name):
    return next(row["test_list"] for row in rows("MBPP") if name in row["test_list"][0])


@needs_data
@pytest.mark.parametrize("name", SOLUTIONS)
def test_mbpp(name):
    assert judge(SOLUTIONS[name], mbpp_tests(name)) == ["passed"] * 3
    function = name.partition("(")[0]
    assert "passed" not in judge(f"{SOLUTIONS[name]}\ndef {function}(*a): return 'no'", mbpp_tests(name))


@needs_data
@needs_sandbox
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["remove_Occ", "sum(10,15)", "freq_count"], id="some"),
        pytest.param(list(SOLUTIONS), id="all", marks=pytest.mark.slow),
    ],
)
def test_mbpp_in_sandboxes(names):
    verdicts = CodeGrader().grade([(SOLUTIONS[name], {"test_list": mbpp_tests(name)}) for name in names])
    assert verdicts == [Verdict(True, "passed", 3, 3)] * len(names)
