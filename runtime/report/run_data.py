"""A run's folder as its report reads it: whatever of it is there, also in the middle of a run."""

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from configs.tree import flat
from runtime.files import atomic_write_text, parsed

Command = Literal["rl", "sft", "eval"]
ABOUT = "report.json"
SCORES = "scores.jsonl"
_TAIL_BYTES, _LINE_BYTES = 2**22, 2**23
Curve = tuple[list[int], list[float]]
"""Steps and values."""
Scores = dict[str, list[float | None]]
"""Task -> the rewards of its responses, in the order of their keys."""


@dataclass(frozen=True)
class About:
    """What a run's files do not say otherwise: its command, the YAML that was typed, and key -> (value there, value in
    the run) of what differs."""

    command: Command
    recipe: str = ""
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        atomic_write_text(folder / ABOUT, json.dumps(vars(self), indent=1, default=str) + "\n")

    @staticmethod
    def read(folder: Path) -> "About | None":
        found = _json(folder / ABOUT)
        try:
            changed = {str(key): (then, now) for key, (then, now) in found["changed"].items()}
            return About(found["command"], str(found["recipe"]), changed)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


@dataclass(frozen=True)
class RunData:
    """rows: of metrics.jsonl. config: config.yaml, flat. results: of eval.py, by entry. scores: (step, entry) -> what
    each task earned. samples: (offset of its line, row) of rollouts.jsonl or samples.jsonl."""

    folder: Path
    about: About
    rows: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any]
    results: Mapping[str, Mapping[str, float]]
    scores: Mapping[tuple[int, str], Scores]
    samples: Sequence[tuple[int, Mapping[str, Any]]]
    finished: bool

    @property
    def name(self) -> str:
        return str(self.config.get("experiment.project") or self.folder.name)

    def curves(self) -> dict[str, Curve]:
        """Metric -> its steps and finite values; the last row of a step counts."""
        found: dict[str, dict[int, float]] = {}
        for row in self.rows:
            step = row.get("step")
            for key, value in row.items():
                if key != "step" and isinstance(step, int) and _is_number(value):
                    found.setdefault(key, {})[step] = float(value)
        return {key: (sorted(values), [values[step] for step in sorted(values)]) for key, values in found.items()}


def read_run(folder: Path, samples: int = 64) -> RunData:
    """A run as it is on disk now. ValueError where the folder has neither metrics nor results."""
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("metrics.jsonl", "results.json")):
        raise ValueError(f"{folder} is no folder of a run: it has no metrics.jsonl and no results.json.")
    rows = list(_rows(folder / "metrics.jsonl"))
    results = _json(folder / "results.json")
    about = About.read(folder) or About(_guessed(rows, results))
    log = "samples.jsonl" if about.command == "eval" else "rollouts.jsonl"
    return RunData(
        folder,
        about,
        rows,
        _config(folder / "config.yaml"),
        {name: entry for name, entry in results.items() if isinstance(entry, dict)},
        read_scores(folder),
        lines_of(folder / log, samples),
        (folder / "final.json").is_file() or (about.command == "eval" and bool(results)),
    )


def read_scores(folder: Path) -> dict[tuple[int, str], Scores]:
    """What scores.jsonl holds, the last line of a step and entry."""
    found = {}
    for row in _rows(folder / SCORES):
        if isinstance(row.get("step"), int) and isinstance(row.get("scores"), dict):
            found[row["step"], str(row.get("entry"))] = row["scores"]
    return found


def lines_of(path: Path, most: int) -> list[tuple[int, dict[str, Any]]]:
    """(offset, object) of at most `most` lines of a JSONL file of any size: the newest third, the others spread over
    it. Reads those lines alone."""
    if not path.is_file():
        return []
    size = path.stat().st_size
    found: dict[int, dict[str, Any]] = {}
    with path.open("rb") as file:
        start = max(0, size - _TAIL_BYTES)
        file.seek(start)
        if start:
            file.readline(_LINE_BYTES)
        tail = []
        for place, line in _lines(file):
            tail.append((place, line))
        found |= {place: row for place, line in tail[-max(1, most // 3) :] if (row := parsed(line)) is not None}
        spread = max(0, most - len(found))
        for i in range(spread):
            file.seek(i * size // spread)
            if i:
                file.readline(_LINE_BYTES)
            place = file.tell()
            if place not in found and (row := parsed(file.readline(_LINE_BYTES))) is not None:
                found[place] = row
    return sorted(found.items())


def _lines(file: Any) -> Iterator[tuple[int, bytes]]:
    while True:
        place = file.tell()
        line = file.readline(_LINE_BYTES)
        if not line:
            return
        yield place, line


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _guessed(rows: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> Command:
    """The command of a run of an earlier version."""
    if results:
        return "eval"
    return "rl" if any("reward/left_out" in row or "reward/mean" in row for row in rows) else "sft"


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The whole objects of a JSONL file, whatever its other lines are (it may be written right now)."""
    if path.is_file():
        with path.open("rb") as file:
            yield from (row for line in file if (row := parsed(line)) is not None)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _config(path: Path) -> dict[str, Any]:
    """config.yaml, flat; nothing where it is absent or damaged."""
    try:
        with warnings.catch_warnings(action="ignore"):
            found = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return flat(found) if isinstance(found, dict) else {}
