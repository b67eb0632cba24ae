"""Program and tests as in their sandboxes, each side's own code, but in two threads of this process: milliseconds."""

import builtins
import os
import sys
import tempfile
import threading
import types
from contextlib import suppress

from reward.code.inside.link import Link
from reward.code.inside.plain import MAX_REPLY_BYTES, MAX_REQUEST_BYTES
from reward.code.inside.program import Served
from reward.code.inside.tests import Program, ProgramGone, prepare, run_test
from reward.code.inside.wire import BadFrame
from reward.code.plan import plan_tests
from reward.code.ungradable import Ungradable

MAX_QUESTIONS = 1000  # in place of the limit of processor time


class Limited(Program):
    def ask(self, operation, *arguments):
        if self.count > MAX_QUESTIONS:
            raise self._fail("timeout", "")
        return super().ask(operation, *arguments)


def judge(program, tests, prefix=""):
    """The status of each test; of all of them one, where the program does not load; "ungradable" where the plan
    refuses."""
    try:
        job = plan_tests(tests, prefix).job(program)
    except Ungradable:
        return ["ungradable"]
    before = {name: sys.modules.get(name) for name in ("tests", "program")}
    around = builtins.input, sys.stdin, sys.stdout, sys.stderr, sys.getrecursionlimit()
    calls, calls_in = os.pipe()
    answers, answers_in = os.pipe()
    folder, here = tempfile.TemporaryDirectory(), os.getcwd()
    os.chdir(folder.name)
    thread = threading.Thread(target=_serve, args=(calls, answers_in), daemon=True)
    thread.start()
    try:
        return [status for status, _ in _run(job, calls_in, answers)]
    finally:
        os.close(calls_in)
        thread.join(5)
        assert not thread.is_alive()
        os.close(calls)
        os.close(answers)
        os.chdir(here)
        folder.cleanup()
        builtins.input, sys.stdin, sys.stdout, sys.stderr = around[:-1]
        sys.setrecursionlimit(around[-1])
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module


def _serve(calls, answers_in):
    side = Served(types.ModuleType("program"))
    side.link = Link(side, calls, answers_in, may_take=MAX_REQUEST_BYTES, may_send=MAX_REPLY_BYTES)
    with suppress(EOFError, OSError, BadFrame):
        while True:
            side.link.serve()
    with suppress(OSError):
        os.close(answers_in)


def _run(job, calls, answers):
    namespace = prepare(job)
    program = Limited(calls, answers, job, namespace)
    try:
        program.load(job["program"])
    except (Exception, ProgramGone) as error:
        return [(getattr(error, "status", "error"), str(error))]
    told = []
    for index, test in enumerate(job["tests"]):
        status, detail = run_test(test, namespace, program)
        told.append(("preparation" if status == "passed" and index in job["preparation"] else status, detail))
    return told
