"""What a person sees of a run, and metrics.jsonl: a banner, progress bars, one aligned line a step, curves at the end.

Banner, step lines and events go to stdout, bars and warnings to stderr. Without a terminal everything is plain lines.
Control characters in whatever is printed are shown as escapes.
"""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from runtime import curves
from runtime.bars import Bar, Bars
from runtime.files import append_jsonl, read_jsonl
from runtime.heartbeat import Heartbeat
from runtime.report.writer import ReportWriter
from runtime.run_config import public
from runtime.text import NUMBER_WIDTH, format_number, format_seconds, printable, rounded
from runtime.timing import Timing
from runtime.trackers import Trackers

SHOWN = ("reward/mean", "completion_length", "loss", "kl", "grad_norm", "tokens_per_second")
EVALUATION_SHOWN = ("accuracy", "stderr", "reward", "length", "tokens_per_forward", "tokens_per_second")
SAMPLE = ("task", "prompt", "completion", "answer", "reward")
SAMPLE_INDENT, SAMPLE_CHARACTERS = 14, 600
TABLE_ROWS = 16
LABELS = {
    "reward/mean": "reward",
    "completion_length": "len",
    "grad_norm": "grad",
    "learning_rate": "lr",
    "tokens_per_second": "tok/s",
    "tokens_per_forward": "tok/forward",
}


class Monitor:
    """Shows a run and logs it to folder/metrics.jsonl. With `enabled` false (ranks other than 0) it does neither. On
    every rank it keeps the rank's signs of life in folder/heartbeat/.

    trackers: names of TRACKERS that get every metric too; config: what they record of the run.
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
        self._bars = Bars(self._err, self._heartbeat)
        self._timing = Timing()
        self._warned: set[str] = set()
        self._trackers = Trackers(trackers if enabled else (), self.folder, public(config or {}), self.warning)
        self._report = ReportWriter(self.folder, self.warning)

    def banner(self, title: str, rows: Mapping[str, str]) -> None:
        """A title over aligned pairs."""
        if not self.enabled:
            return
        title, rows = printable(title), {printable(key): printable(value) for key, value in rows.items()}
        if self._out.is_terminal:
            self._out.print(_box(title, rows))
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
            return
        with self._bars.bar(total, label) as bar:
            yield bar

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the block's duration to time/{name}_seconds of the next step's metrics; blocks of one name add up. A
        block inside another counts under its own name alone."""
        self._heartbeat.enter(name)
        try:
            with self._timing.timed(name):
                yield
        finally:
            if outer := self._timing.open_block:
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
        """One line on stdout and one in metrics.jsonl, with what was timed and time/step_seconds (`Timing`).

        A number that is not finite is null in the file. `shown` names the metrics in the line; an absent one is "-".
        `quiet` leaves the line on stdout out.
        """
        seconds, times = self._timing.end_step()
        if not self.enabled:
            return
        self._log(step, {**metrics, **times})
        if quiet:
            return
        cells = [
            f"{LABELS.get(key, key.split('/')[-1])} {format_number(metrics.get(key)):>{NUMBER_WIDTH}}" for key in shown
        ]
        width, eta = len(str(total)), format_seconds(self._timing.eta_seconds(total - step))
        self._print_cells([f"step {step:>{width}}/{total}", *cells, f"{format_seconds(seconds):>6}", f"eta {eta:>6}"])

    def evaluation(
        self,
        step: int,
        metrics: Mapping[str, float],
        *,
        name: str = "",
        under: str = "eval",
        score: str = "accuracy",
        shown: Sequence[str] = EVALUATION_SHOWN,
        quiet: bool = False,
    ) -> None:
        """A line for an evaluation, its `score` compared with the best so far; all of it logged under {under}/{name}/.

        Its time does not count as the next step's. `quiet` leaves the line on stdout out.
        """
        self._timing.leave_out()
        if not self.enabled:
            return
        prefix = f"{under}/{name}/" if name else f"{under}/"
        earlier = read_jsonl(self._metrics_path) if self._metrics_path.exists() else ()
        scores = [row[prefix + score] for row in earlier if row.get(prefix + score) is not None]
        self._log(step, {prefix + key: value for key, value in metrics.items()})
        cells = [f"{LABELS.get(key, key)} {format_number(metrics[key])}" for key in shown if key in metrics]
        best = [f"(best {score} before: {format_number(max(scores))})"] if scores else []
        title = f"{prefix.rstrip('/').replace('/', ' ')} after step {step}"
        if not quiet:
            self._print_cells([title, *cells, *best], style="bold")

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Responses of a step: the first on stdout, the long texts cut in their middle, TABLE_ROWS in trackers. Of each
        task, prompt, completion, true answer and reward."""
        if not self.enabled:
            return
        texts = [{name: str(row[name]) for name in SAMPLE if row.get(name) is not None} for row in rows[:TABLE_ROWS]]
        self._trackers.table(step, "samples", [{n: printable(text) for n, text in row.items()} for row in texts])
        self._print("\n".join([f"a response of step {step}", *_sample_lines(texts[0])]))

    def evaluation_table(self, step: int, found: Mapping[str, Mapping[str, float]]) -> None:
        """The figures of all decodings of an evaluation, as a table in trackers."""
        if self.enabled:
            rows = [{"decoding": name} | {key: _finite(value) for key, value in found[name].items()} for name in found]
            self._trackers.table(step, "evaluations", rows)

    def event(self, text: str) -> None:
        """A line on stdout."""
        if self.enabled:
            self._print(text)

    def warning(self, text: str) -> None:
        """A line on stderr, once for each text."""
        if self.enabled and text not in self._warned:
            self._warned.add(text)
            self._err.print(f"warning: {printable(text)}", style="yellow", markup=False)

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
        """Closes the monitor and prints `final {json}`, rounded, the last line on stdout."""
        self._heartbeat.enter("done")
        self.close()
        if self.enabled:
            print(f"final {json.dumps(rounded(_finite(result)))}", flush=True)

    def close(self) -> None:
        """Ends the trackers and writes the report as it is at the end."""
        self._trackers.close()
        if self.enabled:
            self._report.close()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _print_cells(self, cells: Sequence[str], style: str | None = None) -> None:
        """Cells in one line; on a terminal that is too narrow for them in several, without a break inside one."""
        width, lines = self._out.width if self._out.is_terminal else None, [cells[0]]
        for cell in cells[1:]:
            fits = width is None or len(lines[-1]) + 2 + len(cell) <= width
            lines[-1:] = [f"{lines[-1]}  {cell}"] if fits else [lines[-1], f"  {cell}"]
        self._print("\n".join(lines), style)

    def _print(self, text: str, style: str | None = None) -> None:
        """On stdout; while bars are drawn on the same terminal, above them."""
        console = self._err if self._bars.are_drawn and self._out.is_terminal else self._out
        console.print(printable(text), style=style, markup=False)
        console.file.flush()

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        append_jsonl(self._metrics_path, [_finite({"step": step, **metrics, "time/at": round(time.time(), 3)})])
        self._trackers.log(step, metrics)
        self._report.soon()


def _sample_lines(texts: Mapping[str, str]) -> Iterator[str]:
    """A response's texts by name, aligned."""
    for name, text in texts.items():
        shown = printable(_shortened(text)).replace("\n", "\n" + " " * SAMPLE_INDENT)
        yield f"  {name:<{SAMPLE_INDENT - 2}}{shown}"


def _shortened(text: str) -> str:
    """At most SAMPLE_CHARACTERS of a text: its beginning and its end."""
    half = SAMPLE_CHARACTERS // 2
    return text if len(text) <= SAMPLE_CHARACTERS else f"{text[:half]} ... {text[-half:]}"


def _box(title: str, rows: Mapping[str, str]) -> Panel:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a path is broken, never cut
    for key, value in rows.items():
        table.add_row(Text(key, style="dim"), Text(value))
    heading = Text(title, style="bold")
    return Panel(table, title=heading, title_align="left", border_style="dim", expand=False)


def _finite(value: Any) -> Any:
    """`value` with None for numbers that JSON cannot express, and Python's numbers for those of numpy and torch."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
