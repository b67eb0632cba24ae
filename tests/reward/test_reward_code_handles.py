"""Objects of the program in the tests: right programs pass, wrong ones fail, and none passes by what it says of
itself."""

import pytest
from code_classes import FORGING, TASKS
from code_forgeries import FORGERIES, FRAMES
from code_honest import HONEST, UNGRADABLE
from two_sides import judge

from reward import grade_code
from reward.code.plan import plan_tests
from reward.code.sandbox import INSTALL_HINT, find_isolation

needs_sandbox = pytest.mark.skipif(find_isolation() is None, reason=f"no sandbox here: {INSTALL_HINT}")
QUICK = ("an answer, then another", "changes of nothing")


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


@pytest.mark.parametrize(("program", "test"), HONEST.values(), ids=HONEST)
def test_results_cross_as_what_they_are(program, test):
    assert judge(program, [test]) == ["passed"]


@pytest.mark.parametrize(("program", "test"), UNGRADABLE.values(), ids=UNGRADABLE)
def test_what_only_the_program_could_decide_is_ungradable(program, test):
    assert judge(program, [test]) == ["ungradable"]


@pytest.mark.parametrize(("program", "test"), FORGERIES.values(), ids=FORGERIES)
def test_no_forgery_passes(program, test):
    assert judge(program, [test])[0] != "passed"


@needs_sandbox
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in FRAMES]
)
def test_no_frame_by_hand_passes(name):
    tasks = {"test_list": ["assert f(2) == 42", "assert f(3) == 43"], "test_time_limit": 0.5}
    verdict = grade_code(FRAMES[name], tasks)
    assert not verdict.passed and verdict.status not in ("ungradable", "infra_error"), verdict
