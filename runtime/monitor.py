"""What a person sees of a run, and metrics.jsonl: a banner, progress bars, one aligned line a step, curves at the end.

Banner, step lines and events go to stdout, bars and warnings to stderr. Without a terminal everything is plain lines.
"""

import collections
import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from runtime import curves
from runtime.files import append_jsonl, read_jsonl
from runtime.heartbeat import Heartbeat
from runtime.trackers import Trackers

SHOWN = ("reward/mean", "completion_length", "loss", "kl", "grad_norm", "tokens_per_second")
EVALUATION_SHOWN = ("accuracy", "stderr", "reward", "length", "tokens_per_forward", "tokens_per_second")
LABELS = {
    "reward/mean": "reward",
    "completion_length": "len",
    "grad_norm": "grad",
    "learning_rate": "lr",
    "tokens_per_second": "tok/s",
    "tokens_per_forward": "tok/forward",
}
NUMBER_WIDTH = 8
PLAIN_PROGRESS_SECONDS = 15.0
ETA_STEPS = 20


def format_number(value: float | None) -> str:
    """At most NUMBER_WIDTH characters: about four significant digits, an exponent when tiny or huge, "-" for None."""
    if value is None:
        return "-"
    size = abs(value)
    if not math.isfinite(value) or (isinstance(value, int) and size < 1e7):
        return str(value)
    if 0 < size < 1e-3 or size >= 1e7:
        return f"{value:.1e}"
    decimals = 4 if size < 1 else max(0, 3 - int(math.log10(size)))
    return f"{value:.{decimals}f}"


def format_seconds(seconds: float) -> str:
    """7.3s, 4m05s, 3h02m, 2d04h."""
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours < 48 else f"{hours // 24}d{hours % 24:02d}h"


class Bar:
    """One running count. `advance` may be called as often as one likes; it is a sign of life."""

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
        self.task: TaskID = progress.add_task(label, total=total)

    def advance(self, n: int = 1) -> None:
        super().advance(n)
        self._progress.advance(self.task, n)


class PlainBar(Bar):
    """A line on stderr every PLAIN_PROGRESS_SECONDS; nothing for what is done sooner."""

    def __init__(self, total: int, label: str, heartbeat: Heartbeat) -> None:
        super().__init__(total, label, heartbeat)
        self._start = self._said = time.monotonic()

    def advance(self, n: int = 1) -> None:
        super().advance(n)
        now = time.monotonic()
        if now - self._said < PLAIN_PROGRESS_SECONDS or not self.done:
            return
        self._said = now
        spent = now - self._start
        left = format_seconds(spent * (self.total - self.done) / self.done)
        share = self.done / max(1, self.total)
        print(
            f"{self.label} {self.done}/{self.total} ({share:.0%}) {format_seconds(spent)}, {left} to go",
            file=sys.stderr,
        )


class Monitor:
    """Shows a run and logs it to folder/metrics.jsonl. With `enabled` false (ranks other than 0) it does neither. Every
    rank's says in folder/heartbeat/ where the rank is.

    trackers: names of TRACKERS that get every metric too; config: what they are told of the run.
    """

    def __init__(
        self,
        folder: Path,
        *,
        trackers: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        enabled: bool = True,
        rank: int = 0,
    ) -> None:
        self.folder = Path(folder)
        self.enabled = enabled
        if enabled:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._metrics_path = self.folder / "metrics.jsonl"
        self._heartbeat = Heartbeat(self.folder, rank)
        self._heartbeat.enter("start")
        self._out = Console(highlight=False, soft_wrap=True)
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._warned: set[str] = set()
        self._spent: dict[str, float] = {}
        self._timing: list[tuple[str, float]] = []  # the open blocks, with the seconds of those inside them
        self._recent_seconds: collections.deque[float] = collections.deque(maxlen=ETA_STEPS)
        self._step_started: float | None = None
        self._trackers = Trackers(trackers if enabled else (), self.folder, config or {}, self.warning)

    def banner(self, title: str, rows: Mapping[str, str]) -> None:
        """A title over aligned pairs."""
        if not self.enabled:
            return
        if self._out.is_terminal:
            table = Table.grid(padding=(0, 2))
            for key, value in rows.items():
                table.add_row(Text(key, style="dim"), Text(value))
            heading = Text(title, style="bold")
            self._out.print(Panel(table, title=heading, title_align="left", border_style="dim", expand=False))
            return
        width = max(map(len, rows), default=0)
        lines = [title, *(f"  {key:<{width}}  {value}" for key, value in rows.items())]
        print("\n".join(lines), flush=True)

    def begin(self, step: int) -> None:
        """The work that follows is that of step `step`."""
        self._heartbeat.step = step

    @contextlib.contextmanager
    def progress(self, total: int, label: str) -> Iterator[Bar]:
        """A bar over `total` things while the block runs; yields what counts: `bar.advance(n)`."""
        self._heartbeat.enter(label)
        if not self.enabled:
            yield Bar(total, label, self._heartbeat)
        elif not self._err.is_terminal:
            yield PlainBar(total, label, self._heartbeat)
        else:
            with self._bars() as progress:
                bar = TerminalBar(total, label, self._heartbeat, progress)
                try:
                    yield bar
                finally:
                    progress.remove_task(bar.task)

    @contextlib.contextmanager
    def _bars(self) -> Iterator[Progress]:
        """The one live display, shared by nested bars."""
        if self._progress is not None:
            yield self._progress
            return
        columns = (TextColumn("{task.description}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(
            *columns, TextColumn("left"), TimeRemainingColumn(), console=self._err, transient=True
        )
        try:
            with self._progress:
                yield self._progress
        finally:
            self._progress = None

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the block's duration to time/{name}_seconds of the next step's metrics; blocks of one name add up. A
        block inside another counts under its own name alone."""
        self._heartbeat.enter(name)
        start = time.monotonic()
        if self._step_started is None:
            self._step_started = start
        self._timing.append((name, 0.0))
        try:
            yield
        finally:
            seconds = time.monotonic() - start
            _, inside = self._timing.pop()
            key = f"time/{name}_seconds"
            self._spent[key] = self._spent.get(key, 0.0) + seconds - inside
            if self._timing:
                outer, others = self._timing[-1]
                self._timing[-1] = outer, others + seconds
                self._heartbeat.enter(outer)

    def step(
        self,
        step: int,
        total: int,
        metrics: Mapping[str, float],
        shown: Sequence[str] = SHOWN,
        *,
        quiet: bool = False,
    ) -> None:
        """One line on stdout and one in metrics.jsonl, with what was timed and time/step_seconds.

        A step lasts from the line before, the first one from the first timed block. A number that is not finite is null
        in the file. `shown` names the metrics in the line; an absent one is "-". `quiet` leaves the line on stdout out.
        """
        now = time.monotonic()
        seconds = 0.0 if self._step_started is None else now - self._step_started
        self._step_started = now
        row = {**metrics, **self._spent, "time/step_seconds": seconds}
        self._spent = {}
        self._recent_seconds.append(seconds)
        if not self.enabled:
            return
        self._log(step, row)
        if quiet:
            return
        eta = sum(self._recent_seconds) / len(self._recent_seconds) * max(0, total - step)
        cells = [
            f"{LABELS.get(key, key.split('/')[-1])} {format_number(metrics.get(key)):>{NUMBER_WIDTH}}" for key in shown
        ]
        width = len(str(total))
        line = [
            f"step {step:>{width}}/{total}",
            *cells,
            f"{format_seconds(seconds):>6}",
            f"eta {format_seconds(eta):>6}",
        ]
        self._say("  ".join(line))

    def evaluation(
        self,
        step: int,
        metrics: Mapping[str, float],
        *,
        name: str = "",
        score: str = "accuracy",
        shown: Sequence[str] = EVALUATION_SHOWN,
        quiet: bool = False,
    ) -> None:
        """A line for an evaluation, its `score` compared with the best so far; all of it logged under eval/{name}/.

        Its time does not count as the next step's. `quiet` leaves the line on stdout out.
        """
        self._step_started = time.monotonic()
        if not self.enabled:
            return
        prefix = f"eval/{name}/" if name else "eval/"
        earlier = read_jsonl(self._metrics_path) if self._metrics_path.exists() else ()
        scores = [row[prefix + score] for row in earlier if row.get(prefix + score) is not None]
        self._log(step, {prefix + key: value for key, value in metrics.items()})
        if quiet:
            return
        cells = [f"{LABELS.get(key, key)} {format_number(metrics[key])}" for key in shown if key in metrics]
        best = f"  (best {score} before: {format_number(max(scores))})" if scores else ""
        self._say(f"{prefix.rstrip('/').replace('/', ' ')} after step {step}  {'  '.join(cells)}{best}", style="bold")

    def event(self, text: str) -> None:
        """A line on stdout."""
        if self.enabled:
            self._say(text)

    def warning(self, text: str) -> None:
        """A line on stderr, once for each text."""
        if self.enabled and text not in self._warned:
            self._warned.add(text)
            self._err.print(f"warning: {text}", style="yellow", markup=False)

    def curves(self) -> Path | None:
        """Draws metrics.jsonl into curves.png and returns its path; None, with a warning, when that cannot be done."""
        if not self.enabled or not self._metrics_path.exists():
            return None
        path = self.folder / "curves.png"
        try:
            drawn = curves.draw(list(read_jsonl(self._metrics_path)), path, self.folder.name)
        except Exception as error:
            self.warning(f"curves.png was not drawn: {type(error).__name__}: {error}")
            return None
        return path if drawn else None

    def final(self, result: Mapping[str, Any]) -> None:
        """Closes the monitor and prints `final {json}`, the last line on stdout."""
        self._heartbeat.enter("done")
        self.close()
        if self.enabled:
            print(f"final {json.dumps(_finite(result))}", flush=True)

    def close(self) -> None:
        self._trackers.close()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _say(self, text: str, style: str | None = None) -> None:
        """On stdout; while bars are drawn on the same terminal, above them."""
        console = self._err if self._progress is not None and self._out.is_terminal else self._out
        console.print(text, style=style, markup=False)
        console.file.flush()

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        append_jsonl(self._metrics_path, [_finite({"step": step, **metrics})])
        self._trackers.log(step, metrics)


def _finite(value: Any) -> Any:
    """`value` with None for numbers that JSON has no word for, and Python's numbers for those of numpy and torch."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
