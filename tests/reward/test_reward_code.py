from pathlib import Path

import pytest
from built_rewards import built

import reward.code.mounts
import reward.code.reward
import reward.code.run
from reward import grade_code
from reward.code.inside.handles import BY_NAME, BY_USE
from reward.code.plan import plan_tests
from reward.code.reward import CodeGrader
from reward.code.sandbox import INSTALL_HINT, NO_ISOLATION, find_isolation
from reward.code.ungradable import Ungradable
from reward.code.verdict import CodeTests

needs_sandbox = pytest.mark.skipif(find_isolation() is None, reason=f"no sandbox here: {INSTALL_HINT}")


def task(*tests, **more):
    return {"test_method": "function", "test_list": list(tests), **more}


# Function tests


@needs_sandbox
def test_share_and_first_status():
    verdict = grade_code("def f(x): return 1 // x", task("assert f(1) == 1", "assert f(0) == 0", "assert f(2) == 1"))
    assert (verdict.passed, verdict.status, verdict.passed_tests, verdict.total_tests) == (False, "error", 1, 3)
    assert "ZeroDivisionError" in verdict.detail


@needs_sandbox
@pytest.mark.parametrize(
    ("program", "test"),
    [
        (
            "def f(x): return x",
            "for v in (None, True, -2**70, 1.5, 'ä\\ud800', b'x', (1,), [[]], {1: {2}}): assert f(v) == v",
        ),
        ("def f(x): return x", "assert type(f((1, [2]))) is tuple and type(f(True)) is bool"),
        ("def f(): return float('inf'), 1e308, -0.0", "import math\nassert f() == (math.inf, 1e308, 0.0)"),
        ("def f(): return iter((1, 2))", "back = f()\nassert next(back) == 1 and list(back) == [2]"),
        (
            "from collections import *\ndef f(): return OrderedDict(a=1), Counter('aa'), defaultdict(list, b=[2])",
            "assert f() == ({'a': 1}, {'a': 2}, {'b': [2]})",
        ),
        (
            "from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
            "assert f() == (1, 2)",
        ),
        (
            "from collections import deque\ndef f(): return deque([1])",
            "from collections import deque\nassert f() == deque([1])",
        ),
        ("def f():\n    yield 1\n    yield 2", "assert list(f()) == [1, 2]"),
        ("def f():\n    yield 1\n    yield 2", "assert next(f()) == 1"),
        (
            "from fractions import Fraction\ndef f(): return Fraction(1, 3)",
            "from fractions import Fraction\nassert f() * 3 == 1",
        ),
        (
            "from decimal import Decimal\ndef f(x): return x + Decimal('0.1')",
            "from decimal import *\nassert f(Decimal(1)) == Decimal('1.1')",
        ),
        (
            "def f(day): return day.replace(year=2000)",
            "from datetime import *\nassert f(date(1, 2, 3)) == date(2000, 2, 3)",
        ),
        ("def f(x, *, y=2, **more): return x + y + more['z']", "assert f(1, z=3) == 6"),
        (
            "def f(x):\n    if x < 0: raise ValueError('negative')\n    return x",
            "try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'negative'",
        ),
        ("def f(x): return x", "assert math.isclose(f(1.0), 1.0)"),
        ("def f(x): return x", "assert sorted([3, 1], key=f) == [1, 3] and list(map(f, [1])) == [1]"),
        ("import random\ndef f(): return random.random()", "assert 0 <= f() <= 1"),
        (
            "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: 'int'\ndef f(): return P(3).x",
            "assert f() == 3",
        ),
        ("def f(x): return x\nif __name__ == '__main__': raise ValueError", "assert f(1) == 1"),
        ("def f(): return open('/scratch/a', 'w').write('abc')", "assert f() == 3"),
        (
            "import threading\ndef f():\n    t = threading.Thread()\n    t.start()\n    t.join()\n    return 1",
            "assert f() == 1",
        ),
        ("import sys\nsys.setrecursionlimit(10**5)\ndef f(n): return n and 1 + f(n - 1)", "assert f(20_000) == 20_000"),
        ("def f(x): return {v for v in x}", "assert f('ab') == {'a', 'b'}"),
    ],
)
def test_honest_programs_pass(program, test):
    verdict = grade_code(program, task(test))
    assert verdict.passed, verdict


@needs_sandbox
def test_a_test_that_swallows_errors_does_not_pass_a_dead_program():
    test = "try:\n    assert f(1) == 1\nexcept BaseException:\n    pass\n"
    assert not grade_code("import os\ndef f(x): os._exit(0)", task(test)).passed


@needs_sandbox
def test_arguments_are_not_changed_for_the_test():
    """A program that empties its argument cannot make `f(x) == sorted(x)` true."""
    test = "x = [3, 1]\nassert f(x) == sorted(x)"
    assert grade_code("def f(x):\n    x.clear()\n    return []", task(test)).status == "wrong"


@needs_sandbox
def test_tests_that_never_call_the_program_prove_nothing():
    verdict = grade_code("def f(x): return 1", task("if False: assert f(1) == 2"))
    assert verdict.status == "ungradable" and not verdict.passed


@needs_sandbox
def test_preparation_is_no_test():
    tests = task("import math", "x = 3", "assert f(x) == math.floor(3.5)", "assert f(x) == 4")
    verdict = grade_code("def f(x): return x", tests)
    assert (verdict.passed_tests, verdict.total_tests, verdict.status) == (1, 2, "wrong")
    assert grade_code("def f(x): return 0", task("assert True", "assert f(1) == 1")).passed_tests == 0


@pytest.mark.slow
@needs_sandbox
def test_a_program_cannot_ask_to_be_left_out():
    """Replies that would make a careless reader fail must cost the program, not the task."""
    forged = """
from reward.code.inside.plain import write_frame
for descriptor in range(3, 20):
    try: write_frame(descriptor, {})
    except OSError: pass
"""
    for reply in (
        "{'raised': 10**5000}",
        "{'raised': 'ungradable', 'text': 3}",
        "{'ok': (1,), 'raised': []}",
        "[1]",
        "{1: {2}}",
    ):
        verdict = grade_code(forged.format(reply), task("assert f(1) == 1"))
        assert verdict.status == "error" and verdict.passed_tests == 0, (reply, verdict)


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        (["assert True"], "call nothing of the program"),
        (["assert f(1 == 2"], "does not parse"),
        (["assert decode(encode('a')) == 'a'"], "one function of the program inside a call of another"),
        (["assert f(list(map(g, [1]))) == 1"], "one function of the program inside a call of another"),
        (["class Sub(Stack): pass\nassert Sub().pop() == 1"], "derives a class"),
        (["assert type(Stack()) is Stack"], "classes of the program"),
        (["open('a', 'w').write('1')\nassert f('a') == 1"], "uses open"),
        (["from tempfile import mkdtemp\nassert f(mkdtemp()) == 1"], "uses tempfile.mkdtemp"),
        (["import os\nos.environ['A'] = '1'\nassert f() == 1"], "uses os.environ"),
        (["import time\ntime.time = lambda: 3\nassert f() == 3"], "changes time.time"),
        (["from unittest.mock import patch\nwith patch('os.getcwd'): assert f() == 3"], "uses patch"),
        (
            ["import unittest\nclass T(unittest.TestCase):\n    def test(self): f(1)\nunittest.main()"],
            "uses unittest.main",
        ),
    ],
)
def test_ungradable(tests, reason):
    with pytest.raises(Ungradable, match=reason):
        plan_tests(tests)


@pytest.mark.parametrize(
    "tests",
    [
        ["x = [2, 1]\nf(x)\nassert x == [1, 2]"],
        ["assert f(lambda x: x) == 1"],
        ["assert f(Pair(1, 2)) == 1"],
        ["assert f(1)(2) == 3"],
        ["assert f(1).value == 3"],
        ["assert Solution().f(1) == 3"],
        ["assert f.cache == 3"],
        ["def check(c):\n    assert c(1).value == 3\ncheck(f)"],
        ["open = 3\nsignal = [1]\nassert f(open, signal) == 3"],
        ["import io, sys\nsys.stdin = io.StringIO('3')\nassert f() == 3"],
        ["from unittest.mock import patch\nwith patch('builtins.input', side_effect=['3']): assert f() == 3"],
    ],
)
def test_gradable(tests):
    plan_tests(tests)


def test_plan():
    assert plan_tests(["assert f(1) == g(2)", "assert math.pi > f(3).real"]).entries == ["f", "g"]
    assert plan_tests(["assert math.isclose(f(1), 2)"]).modules == ["math"]
    assert plan_tests(["import math\nassert math.pi > f(1)"]).modules == []
    prefix = "import re\ndef helper(x): return x\ndef f(x):\n    '''Doc.'''\n"
    assert plan_tests(["assert helper(f(1)) == re.escape('1')"], prefix).entries == ["f"]
    assert plan_tests(["assert f(1) == 2"], "def f(x):").prefix.endswith("pass\n")
    assert plan_tests(["assert f(1) == P(2)"], "class P:\n    x: int\n").entries == ["f"]
    assert plan_tests(["assert f(1) == 2"], "def f(x):\n    y = x").entries == ["f"]
    plan = plan_tests(
        ["class Q: pass", "s = Solution()", "assert s.reverse(12) == f(1).value"], "class P:\n    x: int\n"
    )
    assert (plan.makers, plan.classes, plan.preparation) == (
        {"Solution": BY_USE, "f": BY_USE},
        ["P", "Q"],
        [0, 1],
    )
    assert plan_tests(["assert Solution(1) and f(1)"]).makers == {"Solution": BY_NAME}
    assert plan_tests(["assert f(1).strip() == Sort(2) == g(3).sum()"]).makers == {"Sort": BY_NAME}
    assert plan_tests(["x = f(1)", "y = x.count(2)"]).preparation == []


@needs_sandbox
def test_forgeable_tests_only_when_accepted():
    program = "class Pair:\n    def __init__(self, a): self.a = a\ndef f(p): return p.a\ndef g(p): return p"
    tests = task("assert f(g(Pair(3))) == 3", "assert f(g(Pair(3))) == 4")
    assert grade_code(program, tests).status == "ungradable"
    verdict = grade_code(program, tests, allow_forgeable=True)
    assert (verdict.status, verdict.passed_tests, verdict.total_tests) == ("wrong", 1, 2)
    for cheat in ("import sys\nsys.exit(0)", "import os\nos._exit(0)", "raise SystemExit"):
        assert grade_code(cheat, tests, allow_forgeable=True).passed_tests == 0


# Tests on standard input


@needs_sandbox
def test_stdio():
    tests = {"test_method": "stdio", "test_input": ["1 2\n", "3 4", "x"], "test_output": ["3", " 7\n\n", "?"]}
    program = "import sys\na, b = map(int, sys.stdin.buffer.read().split())\nif __name__ == '__main__': print(a + b)"
    verdict = grade_code(program, tests)
    assert (verdict.passed, verdict.status, verdict.passed_tests, verdict.total_tests) == (False, "error", 2, 3)
    good = {**tests, "test_input": tests["test_input"][:2], "test_output": tests["test_output"][:2]}
    assert grade_code(program, good).passed
    assert grade_code("print(sum(map(int, input().split())))\nexit()", good).passed
    assert grade_code("print(sum(map(int, input().split())), 'and more')", good).status == "wrong"


# Schema, reward


READ_ONLY = """
import os
assert os.read(0, 9) == b"5\\n" and open("/dev/stdin").read() == "5\\n"
for path in (0, "/dev/stdin"):
    try:
        os.write(path if path == 0 else os.open(path, os.O_RDWR), b"6")
    except OSError:
        print("no")
"""


@needs_sandbox
def test_standard_input_is_a_file_that_cannot_be_written():
    verdict = grade_code(READ_ONLY, {"test_method": "stdio", "test_input": ["5\n"], "test_output": ["no no"]})
    assert verdict.passed


def test_schema():
    parsed = CodeTests.of({"test_list": "['assert f(1) == 1']", "test_time_limit": "3", "test_method": "function"})
    assert (parsed.tests, parsed.time_limit_seconds) == (["assert f(1) == 1"], 3.0)
    assert CodeTests.of({"test_input": '["1"]', "test_output": ["1"]}).method == "stdio"
    for bad, message in [
        ({"test_method": "magic"}, "test_method must be"),
        ({"test_method": "function"}, "test_list must be a list of strings"),
        ({"test_list": []}, "test_list must be a list of strings"),
        ({"test_list": "assert f(1)"}, "test_list must be a list of strings"),
        ({"test_list": ["a"], "test_time_limit": "soon"}, "test_time_limit must be"),
        ({"test_list": ["a"], "test_time_limit": -1}, "test_time_limit must be"),
        ({"test_input": ["1"], "test_output": ["1", "2"]}, "1 entries and test_output 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            CodeTests.of(bad)


@needs_sandbox
def test_code_reward():
    completions = [
        "```python\ndef f(x): return x\n```",
        "```python\ndef f(x): return 1\n```",
        "no code",
        "```python\ndef f(x): return x\n```",
    ]
    columns = {
        "test_list": [["assert f(1) == 1", "assert f(2) == 2"]] * 3 + [["assert f(g(1)) == 1"]],
        "test_method": ["function"] * 4,
    }
    with built(data_type="code", num_chunk=2) as rewards:
        assert rewards(["p"] * 4, completions, **columns) == [1.0, 0.5, 0.0, None]
        counts = {"passed": 1.0, "wrong": 1.0, "no_code": 1.0, "ungradable": 1.0}
        assert rewards.stats == {"reward/none_count": 1.0} | {f"reward/code_{k}_count": v for k, v in counts.items()}
    with built(data_type="code", all_or_nothing=True) as rewards:
        assert rewards(["p"] * 4, completions, **columns) == [1.0, 0.0, 0.0, None]
    with pytest.raises(ValueError, match="needs the column 'test_list'"):
        rewards(["p"], ["c"], question=["q"])


# No sandbox, broken sandbox


@pytest.fixture
def nothing_isolates(monkeypatch):
    monkeypatch.setattr(reward.code.reward, "find_isolation", lambda: None)
    reward.code.reward._default_grader.cache_clear()
    yield
    reward.code.reward._default_grader.cache_clear()


def test_no_isolation_is_refused(nothing_isolates):
    with pytest.raises(ValueError, match="apt-get install bubblewrap.*execute.allow_unsafe=true"):
        built(data_type="code")
    with pytest.raises(ValueError, match="nothing isolates"):
        grade_code("def f(x): return x", task("assert f(1) == 1"))


def test_allow_unsafe_warns_and_runs(nothing_isolates, tmp_path):
    with pytest.warns(RuntimeWarning, match="WITHOUT isolation"):
        grader = CodeGrader(allow_unsafe=True)
    assert grader.isolation is NO_ISOLATION
    program = f"import os\ndef f(x):\n    assert os.environ.get('HOME') != {str(Path.home())!r}\n    return x"
    verdicts = grader.grade([(program, task("assert f(1) == 1")), ("import os\nos._exit(0)", task("assert f(1) == 1"))])
    assert [verdict.status for verdict in verdicts] == ["passed", "error"]


@needs_sandbox
def test_a_sandbox_that_fails_is_tried_again_then_left_out(monkeypatch):
    real, failures = reward.code.run.start, []

    def start(*args, **kwargs):
        if len(failures) < 2:
            failures.append(1)
            raise OSError(11, "Resource temporarily unavailable")
        return real(*args, **kwargs)

    monkeypatch.setattr(reward.code.run, "start", start)
    monkeypatch.setattr(reward.code.reward.time, "sleep", lambda seconds: None)
    good = ("def f(x): return x", task("assert f(1) == 1"))
    assert CodeGrader().grade([good])[0].passed and len(failures) == 2
    monkeypatch.setattr(reward.code.run, "start", lambda *a, **k: (_ for _ in ()).throw(OSError("no")))
    assert CodeGrader().grade([good])[0].status == "infra_error"
    with built(data_type="code") as rewards:
        assert rewards(["p"], ["```python\nx = 1\n```"], test_list=[["assert f(1) == 1"]]) == [None]


@needs_sandbox
def test_the_working_folder_is_hidden_even_inside_a_visible_one(monkeypatch, tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "answers").write_text("42")
    (tmp_path / "library").write_text("fine")
    tmp_path.chmod(0o755)
    mounts = reward.code.mounts
    visible, cached = mounts.visible_paths, (mounts.mounts, mounts.mounts_of_view, mounts.open_view)
    monkeypatch.setattr(mounts, "visible_paths", lambda python: sorted([*visible(python), str(tmp_path)]))
    monkeypatch.chdir(tmp_path / "project")
    for function in cached:
        function.cache_clear()
    try:
        program = f"import os\ndef f(name): return os.path.exists(os.path.join({str(tmp_path)!r}, name))"
        tests = task("assert f('library')", "assert not f('project/answers')")
        assert grade_code(program, tests).passed
    finally:
        for function in cached:
            function.cache_clear()


def test_tests_that_cannot_be_read_do_not_stop_a_run():
    for test in ("assert " + "(" * 500 + "f(1)" + ")" * 500, "assert " + "-" * 20_000 + "f(1)", "return f(1)", "\0"):
        with pytest.raises(Ungradable):
            plan_tests([test])
