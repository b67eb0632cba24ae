"""Objects of the program in the tests: right programs pass, wrong ones fail, and none that says yes to everything
passes."""

import pytest
from code_classes import FORGING, TASKS
from two_sides import judge

from reward.code.plan import plan_tests


@pytest.mark.parametrize("name", TASKS)
def test_tasks_with_objects(name):
    tests, right, wrong = TASKS[name]
    assert judge(right, [tests]) == ["passed"]
    assert judge(wrong, [tests])[0] in ("wrong", "error")


@pytest.mark.parametrize("name", TASKS)
def test_a_program_that_says_yes_to_everything(name):
    tests = TASKS[name][0]
    program = FORGING + "".join(f"{entry} = Anything\n" for entry in plan_tests([tests]).entries)
    assert judge(program, [tests])[0] != "passed"
