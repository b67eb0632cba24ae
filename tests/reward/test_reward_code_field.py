"""Programs of the field (tests/golden/field), each with the verdict that is right."""

import json
from decimal import Context
from pathlib import Path

import pytest
from two_sides import judge

from reward.code import CodeGrader, CodeReward
from reward.code.extract import extract_code
from reward.code.sandbox import INSTALL_HINT, find_isolation

FIELD = Path(__file__).resolve().parents[1] / "golden" / "field"
needs_sandbox = pytest.mark.skipif(find_isolation() is None, reason=f"no sandbox here: {INSTALL_HINT}")

# What the file of passes says of these was the limit of its day: F09, F10 and F24 of the attacks, of the same kinds,
# must pass.
PASS_NOW = {"C-f014", "C-f017", "C-f050"}

CUT = {  # too long for the file
    "C-c015": "\n".join(map(str, range(200_000))),
    "C-c038b": f"{Context(prec=13_000).power(2, 40_000):f}",
}


def lines(name):
    return [json.loads(line) for line in (FIELD / name).read_text().splitlines()]


def cases():
    """(id, program or completion, task, the statuses that are right)."""
    for line in lines("fails.jsonl") + lines("passes.jsonl"):
        if line["area"] == "code":
            right = "passed" if line["id"] in PASS_NOW or line["right"] == 1.0 else line["right"]
            given = line["input"]
            if line["id"] in CUT:
                given["task"]["test_output"] = [CUT[line["id"]]]
            yield line["id"], given.get("program"), given.get("completion"), given["task"], right
    for line in lines("attacks.jsonl"):
        if line["id"][0] in "FH" or line["task"]["test_method"] == "function":
            right = "passed" if line["right_verdict"] == "must pass" else ["wrong", "error", "timeout"]
            yield line["id"], line["program"], None, line["task"], right


CASES = [pytest.param(*case[1:], id=case[0]) for case in cases()]
FUNCTIONS = [case for case in CASES if case.values[2]["test_method"] == "function"]


def is_right(status, right):
    wanted = [right] if isinstance(right, str) else right
    return status in [status.removesuffix(" (documented)") for status in wanted]


@pytest.mark.parametrize(("program", "completion", "task", "right"), FUNCTIONS)
def test_function_tests(program, completion, task, right):
    prefix = task.get("prefix", "")
    statuses = judge(program or extract_code(completion, prefix), task["test_list"], prefix)
    first = next((status for status in statuses if status not in ("passed", "preparation")), "passed")
    assert is_right(first, right), statuses


@pytest.mark.slow
@needs_sandbox
def test_all_in_their_sandboxes():
    wrong = []
    verdicts = CodeGrader().grade(
        [
            (program or extract_code(completion, task.get("prefix", "")), task)
            for program, completion, task, _ in (case.values for case in CASES)
        ]
    )
    for case, verdict in zip(CASES, verdicts, strict=True):
        if not is_right(verdict.status, case.values[3]):
            wrong.append((case.id, verdict, case.values[3]))
    assert wrong == []


@needs_sandbox
def test_completions_get_their_reward():
    found = [case.values[1:3] for case in CASES if case.values[1] is not None][:4]
    columns = {
        name: [task.get(name) for _, task in found]
        for name in ("test_list", "test_method", "prefix", "test_time_limit")
    }
    assert CodeReward(CodeGrader()).score([""] * 4, [completion for completion, _ in found], columns) == [1.0] * 4
