"""What arrives from a sandbox: read in bounded time, whatever it is."""

import os
import time

import pytest

from reward.code import run
from reward.code.inside.told import MAX_DETAIL, tell, told
from reward.code.sandbox import INSTALL_HINT, find_isolation
from reward.code.verdict import CodeTests

needs_sandbox = pytest.mark.skipif(find_isolation() is None, reason=f"no sandbox here: {INSTALL_HINT}")


def test_a_verdict_crosses_as_it_was_told():
    reader, writer = os.pipe()
    details = ["", "two\nlines\tand \\ \x1b[31m", "\ud800 \U0001f600", "x" * 10_000]
    for test, detail in enumerate(details):
        tell(writer, test, "wrong", detail)
    tell(writer, -1, "passed", secret="s3cret")
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        output = pipe.read()
    expected = [(test, "wrong", detail[:MAX_DETAIL]) for test, detail in enumerate(details)]
    assert list(told(output, 4)) == expected
    assert list(told(output, 4, "s3cret")) == [(-1, "passed", "")]
    assert list(told(output, 2)) == expected[:2]


@pytest.mark.parametrize(
    "output",
    [
        b"\n" * (8 << 20),
        b"- " * (4 << 20),
        b"- 0 passed",
        b"-  passed \n",
        b"- 9 passed \n" * 1000,
        b"- -2 passed \n",
        b"- 1_0 passed \n",
        b"- " + b"1" * (8 << 20) + b" passed \n",
        b"-" + b"\0" * 100 + b"\n",
        "- ² passed \n".encode(),
        b"x 0 passed \n",
    ],
)
def test_what_is_no_verdict_is_passed_over_in_little_time(output):
    started = time.process_time()
    assert list(told(output, 3)) == []
    assert time.process_time() - started < 0.5


JOINT = {"test_list": ["assert f(1) == 2", "assert f(2) == 3"]}
FLOODS = {
    "lines": "b'\\n' * (7 << 20)",
    "words": "b'- ' * (3 << 20) + b'\\n'",
    "forged": "b'- 0 passed \\n- 1 passed \\n' * 1000",
    "frames of the other wire": "b'L\\x02\\0\\0\\0s\\x12\\0\\0\\0fractions.Fractions\\x0c\\0\\0\\x001e9999999999' * 9",
    "empty deques of the other wire": "b'l\\0\\0\\x10\\0' + b'q\\0\\0\\0\\0' * (1 << 20)",
}


@needs_sandbox
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "forged" else pytest.mark.slow) for n in FLOODS])
def test_programs_beside_their_tests_cannot_hold_up_the_trainer(name):
    program = f"""
import os
for descriptor in range(64):
    try: os.write(descriptor, {FLOODS[name]})
    except OSError: pass
def f(x): return 0
"""
    room, tests = run.Room(find_isolation(), 2 << 30), CodeTests.of(JOINT)
    started = time.process_time()
    verdict = run.run_together(room, program, tests)
    assert time.process_time() - started < 2.0
    assert not verdict.passed and verdict.passed_tests == 0


@needs_sandbox
def test_programs_beside_their_tests_pass_by_their_secret():
    room, tests = run.Room(find_isolation(), 2 << 30), CodeTests.of(JOINT)
    assert run.run_together(room, "def f(x): return x + 1", tests).passed
    assert run.run_together(room, "def f(x): return 2", tests).passed_tests == 1


def test_outputs_are_compared_word_by_word():
    assert run._same_words(" 1\t2\n\n3\u00a0 4", "1 2 3 4\n")
    assert run._same_words("", " \n")
    for output in ("1 2 3", "1 2 3 4 5", "1 2 34", "", "1 2 3 x"):
        assert not run._same_words(output, "1 2 3 4")
