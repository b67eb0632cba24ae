"""What a step spends its time on, operation by operation: torch's profiler over chosen steps of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = "profile"
ROWS = 40


class Profiler:
    """Records the steps that `steps` names into folder/profile/: step-NNNNNN-rankR.json, a trace for chrome://tracing
    or https://ui.perfetto.dev, and .txt, the ROWS operations that took longest. A step lasts to the next `at`."""

    def __init__(self, steps: Sequence[int], folder: Path, rank: int = 0):
        self.steps, self.folder, self.rank = frozenset(steps), folder / FOLDER, rank
        self._running: tuple[int, Any] | None = None

    def at(self, step: int) -> None:
        """Step `step` begins, and the one before has ended."""
        self.close()
        if step not in self.steps:
            return
        from torch.profiler import profile

        self._running = step, profile()
        self._running[1].start()

    def close(self) -> None:
        """Ends a recording and writes it."""
        if self._running is None:
            return
        (step, running), self._running = self._running, None
        running.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:06d}-rank{self.rank}"
        running.export_chrome_trace(str(path.with_suffix(".json")))
        averages = running.key_averages()
        on_gpu = any(event.self_device_time_total for event in averages)
        order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        path.with_suffix(".txt").write_text(f"{averages.table(sort_by=order, row_limit=ROWS)}\n", encoding="utf-8")
