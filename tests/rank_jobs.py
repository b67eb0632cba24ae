"""Jobs of several ranks in tests: real processes on this machine, gloo, one thread each, killed at a time-out."""

import ctypes
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from multiprocessing import forkserver
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train.rl", "train.sft", "train.evaluation"])


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def job_environment(rank, world, port):
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def end_with_tests():
    """In a child of the fork server: it and the server end when pytest does, however that ends. The server ends when
    nobody holds its pipe, and each child is given an end of it."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    server = forkserver._forkserver
    os.close(server._forkserver_alive_fd)
    server._forkserver_alive_fd = server._forkserver_address = None


def _rank(function, arguments, environment, log, out):
    end_with_tests()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    import torch

    torch.set_num_threads(1)
    from runtime import ranks

    try:
        result = function(*arguments)
    except BaseException as error:
        traceback.print_exc()
        result = error
    out.write_bytes(pickle.dumps(result))
    ranks.leave()


def run_ranks(folder, world, function, *arguments, timeout=200):
    """function(*arguments) on every rank of a job; the results in order of rank, exceptions among them. A rank that
    ends without a result, or is not done in time, fails the test with the job's log."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    outs, log, port = [folder / f"rank{r}.pickle" for r in range(world)], folder / "log.txt", free_port()
    for out in outs:
        out.unlink(missing_ok=True)
    processes = [
        CONTEXT.Process(
            target=_rank,
            args=(function, arguments, job_environment(r, world, port) if world > 1 else {}, log, outs[r]),
        )
        for r in range(world)
    ]
    deadline = time.monotonic() + timeout
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        late = [r for r, process in enumerate(processes) if process.is_alive()]
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    said = log.read_text() if log.exists() else ""
    assert not late, f"ranks {late} of {world} were not done in {timeout} s:\n{said}"
    missing = [r for r, out in enumerate(outs) if not out.exists()]
    assert not missing, f"ranks {missing} of {world} ended without a result:\n{said}"
    return [pickle.loads(out.read_bytes()) for out in outs]
