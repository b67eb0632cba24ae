"""A rank as the child of its launcher: the variables that it gets, and its end when the launcher is killed."""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

LAUNCHER_VARIABLE = "DLLM_RL_LAUNCHER"
"""Process id of the launcher."""
STORE_VARIABLE = "DLLM_RL_STORE"
"""Where the ranks exchange addresses and counts: see `RankStore`."""
STOPPED_ELSEWHERE = 75
"""Exit status of a rank that ends because another one did."""
_PR_SET_PDEATHSIG = 1


class FailedElsewhere(Exception):
    """Another rank failed, or was lost; it reports why itself. missing: ranks that did not come, where that is
    known."""

    def __init__(self, why: str, missing: Sequence[int] = ()):
        super().__init__(why)
        self.missing = missing


def is_launched() -> bool:
    """Whether torchrun, accelerate launch or `launch.launch` started this process."""
    return "RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def follow_launcher() -> None:
    """In a rank: the kernel kills it when its launcher dies, however that happens. SIGKILL, because Python acts on any
    other signal only between two of its own instructions, and a rank may wait for minutes inside one call of C++ (a
    store that does not answer, a collective). Nothing is lost by it: files are whole or absent after a kill."""
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    if launcher is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):  # it died before the line above
        os._exit(STOPPED_ELSEWHERE)
