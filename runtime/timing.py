"""Durations of a run's steps and of the named parts of each."""

import collections
import contextlib
import time
from collections.abc import Iterator

ETA_STEPS = 20


class Timing:
    """A step lasts from the end of the one before, the first one from the first timed block."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._open: list[tuple[str, float]] = []  # the open blocks, with the seconds of those inside them
        self._recent_seconds: collections.deque[float] = collections.deque(maxlen=ETA_STEPS)
        self._step_started: float | None = None

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the block's duration to the part `name` of the running step. A block inside another counts under its own
        name alone."""
        start = time.monotonic()
        if self._step_started is None:
            self._step_started = start
        self._open.append((name, 0.0))
        try:
            yield
        finally:
            seconds = time.monotonic() - start
            _, inside = self._open.pop()
            self._spent[name] = self._spent.get(name, 0.0) + seconds - inside
            if self._open:
                outer, others = self._open[-1]
                self._open[-1] = outer, others + seconds

    @property
    def open_block(self) -> str | None:
        """The name of the innermost block that is running."""
        return self._open[-1][0] if self._open else None

    def end_step(self) -> tuple[float, dict[str, float]]:
        """The step's duration, and its parts as metrics: time/{name}_seconds and time/step_seconds."""
        now = time.monotonic()
        seconds = 0.0 if self._step_started is None else now - self._step_started
        metrics = {f"time/{name}_seconds": spent for name, spent in self._spent.items()}
        self._step_started, self._spent = now, {}
        self._recent_seconds.append(seconds)
        return seconds, metrics | {"time/step_seconds": seconds}

    def leave_out(self) -> None:
        """What came since the last step's end does not count as the next step's."""
        self._step_started = time.monotonic()

    def eta_seconds(self, steps: int) -> float:
        """What `steps` more steps will take, by the mean of the last ETA_STEPS."""
        return sum(self._recent_seconds) / max(1, len(self._recent_seconds)) * max(0, steps)
