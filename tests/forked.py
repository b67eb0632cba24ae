"""Commands in processes that are forked from one which has imported torch and this package.

An interpreter of their own would spend 4 to 6 s of processor time on imports, and so would each rank that a launcher
starts. `start` is `commands.start` without that: real processes with their own session, arguments, environment and
pipes. What depends on a fresh interpreter (its environment in /proc, a launcher without torch) needs `commands.start`.
"""

import atexit
import itertools
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
from multiprocessing import reduction

from commands import ROOT, without_job
from rank_jobs import CONTEXT, end_with_tests

from runtime import pipes


def start(arguments, stderr=subprocess.PIPE, **environment):
    """A script and its arguments, from the repository's root, outside of any job that this process may be in."""
    return _Forked(list(map(str, arguments)), without_job() | environment, stderr)


class _Forked:
    """What tests use of subprocess.Popen; the process is a child of multiprocessing's fork server."""

    def __init__(self, arguments, environment, stderr):
        self.args, self.returncode = arguments, None
        reader, out = os.pipe()
        self.stdout, self.stderr, err = os.fdopen(reader), None, out
        if stderr == subprocess.PIPE:
            reader, err = os.pipe()
            self.stderr = os.fdopen(reader)
        self._texts, self._readers = {}, []
        self._process = CONTEXT.Process(
            target=_command, args=(arguments, environment, reduction.DupFd(out), reduction.DupFd(err))
        )
        self._process.start()
        for descriptor in {out, err}:
            os.close(descriptor)
        self.pid = self._process.pid

    def poll(self):
        self.returncode = self._process.exitcode
        return self.returncode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout=None):
        """Exit and what was written to stdout and stderr; TimeoutExpired as Popen's."""
        if not self._readers:
            self._readers = [
                threading.Thread(target=self._read, args=(pipe,), daemon=True)
                for pipe in (self.stdout, self.stderr)
                if pipe is not None and not pipe.closed
            ]
            for reader in self._readers:
                reader.start()
        self.wait(timeout)
        for reader in self._readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        return self._texts.get(self.stdout), self._texts.get(self.stderr)

    def _read(self, pipe):
        self._texts[pipe] = pipe.read()
        pipe.close()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self._process.kill()


class _Popen(subprocess.Popen):
    """In a forked process: a script that it starts with this interpreter is a fork of it; all else is as ever."""

    def _execute_child(self, arguments, *more):
        if not isinstance(arguments, list) or arguments[0] != sys.executable or not arguments[1].endswith(".py"):
            return super()._execute_child(arguments, *more)
        pass_fds, environment, ends = more[3], more[5], more[9:15]
        self.pid = os.fork()
        if self.pid == 0:
            for wanted, given in enumerate((ends[0], ends[3], ends[5])):
                if given not in (-1, wanted):
                    os.dup2(given, wanted)
            os._exit(_run(arguments[1:], dict(os.environ if environment is None else environment), pass_fds))
        self._child_created = True
        self._close_pipe_fds(*ends)


def _command(arguments, environment, out, err):
    end_with_tests()
    for wanted, given in ((1, out.detach()), (2, err.detach())):
        os.dup2(given, wanted)
    os._exit(_run(arguments, environment))


def _run(arguments, environment, keep=()):
    """What `python script ...` does, as far as tests can tell; the exit status."""
    try:
        _forget(arguments, environment, keep)
        runpy.run_path(arguments[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return status


def _forget(arguments, environment, keep):
    """Puts back what this process has from the one that it was forked from."""
    os.setsid()
    for number, action in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        signal.signal(number, action)
    atexit._clear()
    logging.getLogger().handlers.clear()
    pipes._actions.clear()
    kept = sorted({0, 1, 2, *keep})
    for low, high in itertools.pairwise([*kept, 1 << 16]):
        os.closerange(low + 1, high)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, "utf-8", "backslashreplace", closefd=False)
    sys.argv, sys.path[0] = list(arguments), str((ROOT / arguments[0]).parent)
    subprocess.Popen = _Popen
