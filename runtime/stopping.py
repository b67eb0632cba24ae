"""Requests to stop: SIGTERM, SIGINT and a broken pipe are noted, and acted on where all ranks can agree and nothing is
lost."""

import signal
from types import FrameType

from runtime import ranks

_asked: int | None = None


class Stopped(Exception):
    """All ranks stop because of a signal; `number` is the signal's. resumes: what the same command does then,
    where the loop that stopped knows better than the folder of the command's own run."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.resumes = ""


def listen() -> None:
    """From now on the first SIGTERM or SIGINT is a request; a second one ends the process at once."""
    global _asked
    _asked = None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _note)


def _note(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = number
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def ask(number: int) -> None:
    """A request in this rank, as if by signal `number`."""
    global _asked
    _asked = number if _asked is None else _asked


def is_asked() -> bool:
    """Whether this rank got a signal to stop."""
    return _asked is not None


def check() -> None:
    """Stopped, on every rank, when any rank got a signal to stop."""
    asked = [number for number in ranks.gather(_asked) if number is not None]
    if asked:
        raise Stopped(asked[0])
