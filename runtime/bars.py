"""Progress bars on stderr: drawn on a terminal, a line now and then elsewhere. Each advance is a sign of life."""

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from runtime.heartbeat import Heartbeat
from runtime.text import format_seconds, printable

PLAIN_PROGRESS_SECONDS = 15.0
_NUMBER_COLUMNS, _LEAST_LABEL = 46, 8
"""Columns of a terminal for counts and times, with the spaces between; and for a label, however narrow it is."""


class Bar:
    """One running count. `advance` may be called as often as one likes."""

    def __init__(self, total: int, label: str, heartbeat: Heartbeat) -> None:
        self.total, self.label, self.done = total, label, 0
        self._heartbeat = heartbeat

    def advance(self, n: int = 1) -> None:
        self.done += n
        self._heartbeat.beat()


class TerminalBar(Bar):
    def __init__(self, total: int, label: str, heartbeat: Heartbeat, progress: Progress) -> None:
        super().__init__(total, label, heartbeat)
        self._progress = progress
        longest = max(_LEAST_LABEL, progress.console.width - _bar_columns(progress.console) - _NUMBER_COLUMNS)
        shown = label if len(label) <= longest else f"{label[: longest - 1]}…"
        self.task: TaskID = progress.add_task(escape(shown), total=total)

    def advance(self, n: int = 1) -> None:
        super().advance(n)
        self._progress.advance(self.task, n)


class PlainBar(Bar):
    """A line on stderr every PLAIN_PROGRESS_SECONDS; nothing for what is done sooner."""

    def __init__(self, total: int, label: str, heartbeat: Heartbeat) -> None:
        super().__init__(total, label, heartbeat)
        self._start = self._printed = time.monotonic()

    def advance(self, n: int = 1) -> None:
        super().advance(n)
        now = time.monotonic()
        if now - self._printed < PLAIN_PROGRESS_SECONDS or not self.done:
            return
        self._printed = now
        spent = now - self._start
        left = format_seconds(spent * (self.total - self.done) / self.done)
        share = self.done / max(1, self.total)
        print(
            f"{self.label} {self.done}/{self.total} ({share:.0%}) {format_seconds(spent)}, {left} to go",
            file=sys.stderr,
        )


class Bars:
    """Makes bars on `console`; nested ones share one live display."""

    def __init__(self, console: Console, heartbeat: Heartbeat) -> None:
        self._console, self._heartbeat = console, heartbeat
        self._live: Progress | None = None

    @property
    def are_drawn(self) -> bool:
        """Whether a live display is on the terminal now."""
        return self._live is not None

    @contextlib.contextmanager
    def bar(self, total: int, label: str) -> Iterator[Bar]:
        """A bar over `total` things while the block runs."""
        label = printable(label)
        if not self._console.is_terminal:
            yield PlainBar(total, label, self._heartbeat)
            return
        with self._display() as progress:
            bar = TerminalBar(total, label, self._heartbeat, progress)
            try:
                yield bar
            finally:
                progress.remove_task(bar.task)

    @contextlib.contextmanager
    def _display(self) -> Iterator[Progress]:
        if self._live is not None:
            yield self._live
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(_bar_columns(self._console)),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        remaining = (TextColumn("left"), TimeRemainingColumn())
        self._live = Progress(*columns, *remaining, console=self._console, transient=True)
        try:
            with self._live:
                yield self._live
        finally:
            self._live = None


def _bar_columns(console: Console) -> int:
    return max(5, min(40, console.width - _NUMBER_COLUMNS - 20))
