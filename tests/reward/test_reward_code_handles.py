"""Objects of the program in the tests: right programs pass, wrong ones fail, and none passes by what it says of
itself."""

import pytest
from case_files import programs
from code_forgeries import FORGERIES, FORGING, FRAMES
from two_sides import judge

from reward import grade_code
from reward.code.plan import plan_tests
from reward.code.sandbox import INSTALL_HINT, find_isolation

needs_sandbox = pytest.mark.skipif(find_isolation() is None, reason=f"no sandbox here: {INSTALL_HINT}")
CLASSES, HONEST, UNGRADABLE = programs("classes"), programs("honest"), programs("ungradable")
QUICK = ("an answer, then another", "changes of nothing")


@pytest.mark.parametrize("case", CLASSES.values(), ids=CLASSES)
def test_tasks_with_objects(case):
    right, tests = case["program"], [case["test"]]
    assert case["change"] in right
    assert judge(right, tests) == ["passed"]
    assert judge(right.replace(case["change"], case["to"]), tests)[0] in ("wrong", "error")


@pytest.mark.parametrize("tests", [case["test"] for case in CLASSES.values()], ids=CLASSES)
def test_a_program_that_says_yes_to_everything(tests):
    program = FORGING + "".join(f"{entry} = Anything\n" for entry in plan_tests([tests]).entries)
    assert judge(program, [tests])[0] != "passed"


@pytest.mark.parametrize("case", HONEST.values(), ids=HONEST)
def test_results_cross_as_what_they_are(case):
    assert judge(case["program"], [case["test"]], case.get("prefix", "")) == ["passed"]


@pytest.mark.parametrize("case", UNGRADABLE.values(), ids=UNGRADABLE)
def test_what_only_the_program_could_decide_is_ungradable(case):
    assert judge(case["program"], [case["test"]]) == ["ungradable"]


@pytest.mark.parametrize(
    ("answer", "status"), [("[2, 1]", "passed"), ("[2, 2]", "wrong")], ids=["a right program", "a wrong one"]
)
def test_results_that_a_test_sorts_or_passes_back_stay_evidence(answer, status):
    program = f"def f(): return {answer}\ndef g(r): return sum(r)\ndef h(): return f()"
    test = "a = f(); a.sort(); b = f(); b.sort(); a.append(4)\nassert g(a) == 7\nassert h() == [2, 1]"
    assert judge(program, [test]) == [status]


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
