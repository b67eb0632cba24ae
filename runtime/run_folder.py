"""The folder of one run: its configuration, its logs and its checkpoints, written by one process at a time."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from configs.schema import Config
from runtime import heartbeat, run_config
from runtime.files import atomic_write_text, delete, remove_leftovers, truncate_jsonl
from runtime.lock import Lock

MADE_HERE = (
    "config.yaml",
    "metrics.jsonl",
    "rollouts.jsonl",
    "graded.jsonl",
    "samples.jsonl",
    "results.json",
    "curve.json",
    "curve.png",
    "comparison.json",
    "evaluations.json",
    "images.json",
    "images",
    "curves.png",
    "scores.jsonl",
    "report.json",
    "report.html",
    "trace.html",
    "inspect",
    "final.json",
    "start.json",
    "ckpt",
    "heartbeat",
    "trackers",
    "profile",
)
_LONGEST_NAME_BYTES = 255
logger = logging.getLogger(__name__)


def run_path(config: Config) -> Path:
    """The run's folder. ValueError for a project that is not a name inside output_dir."""
    project = Path(config.experiment.project)
    named = all(part.isprintable() and len(os.fsencode(part)) <= _LONGEST_NAME_BYTES for part in project.parts)
    if not project.parts or project.is_absolute() or ".." in project.parts or not named:
        raise ValueError(
            f"experiment.project={config.experiment.project!r} is not the name of a folder in experiment.output_dir."
        )
    return Path(config.experiment.output_dir) / project


@dataclass
class RunFolder:
    """`path` and the places in it. `resumed`: it held this run already.

    `open` gives the one writer's. Further processes of the same job make theirs with `RunFolder(path, resumed)`: the
    places without the lock.
    """

    path: Path
    resumed: bool = False
    _lock: Lock | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls,
        root: Path,
        settings: run_config.Settings,
        *,
        overwrite: bool,
    ) -> "RunFolder":
        """Takes `root`, the run's own folder, for writing, and makes it when absent.

        A folder that holds this run is resumed, with `overwrite` too: settings that leave its results as they are may
        be others now (`configs.effects`), which one line reports, and config.yaml then has those of now.
        `overwrite` deletes a run of another configuration (MADE_HERE, nothing else), which is refused without it and
        the difference shown. ValueError then, and when another process writes there, or it cannot be written.
        """
        root = Path(root)
        _check_place(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            lock = Lock.take(root / ".lock")
        except OSError as error:
            raise _unwritable(root, error) from error
        try:
            changes = cls._changes(root, settings, overwrite)
            resumed = changes is not None
            (root / "final.json").unlink(missing_ok=True)
            if not resumed:
                _delete_run(root)
            elif overwrite:
                logger.warning("%s holds this very run: experiment.overwrite does nothing, the run is resumed", root)
            remove_leftovers(root)
            shutil.rmtree(root / heartbeat.FOLDER, ignore_errors=True)
            if (root / "ckpt").is_dir():
                remove_leftovers(root / "ckpt")
            if changes is None or changes.taken or not changes.has_digests:
                run_config.write(root / "config.yaml", settings)
        except BaseException as error:
            lock.release()
            if isinstance(error, OSError):
                raise _unwritable(root, error) from error
            raise
        return cls(root, resumed, lock)

    @classmethod
    def check(cls, root: Path, settings: run_config.Settings, *, overwrite: bool) -> bool:
        """Whether `open` would resume a run in `root`, or ValueError where `open` would refuse it. Writes nothing."""
        return cls._changes(Path(root), settings, overwrite) is not None

    @staticmethod
    def _changes(root: Path, settings: run_config.Settings, overwrite: bool) -> run_config.Changes | None:
        """How the settings of the run in `root` differ from those that it is resumed with; None for a new run."""
        _check_place(root)
        config_path = root / "config.yaml"
        if not config_path.exists():
            found = [name for name in MADE_HERE if (root / name).is_file() or _holds_something(root / name)]
            if found:
                raise ValueError(
                    f"{root} holds {', '.join(found)} but no config.yaml, so it is not known whose they are. "
                    "Choose another experiment.project, or move them away."
                )
            return None
        changes = run_config.changes(config_path, settings)
        if changes.refused:
            if overwrite:
                return None
            raise _other_run(root, changes)
        if changes.taken:
            logger.warning("%s is resumed with other settings: %s", root, "; ".join(changes.taken))
        if not changes.has_digests:
            logger.warning(
                "%s is of an earlier version and has no digests of the models and data that it names: they are taken "
                "as they are, and compared from now on",
                config_path,
            )
        return changes

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts.jsonl"

    @property
    def graded(self) -> Path:
        return self.path / "graded.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations.json"

    @property
    def scores(self) -> Path:
        """What each task earned in each evaluation, a line for a step and decoding."""
        return self.path / "scores.jsonl"

    @property
    def logs(self) -> tuple[Path, ...]:
        """What grows with the run, line by line: a checkpoint keeps how far."""
        return self.metrics, self.graded

    @property
    def checkpoints(self) -> Path:
        return self.path / "ckpt"

    @property
    def final(self) -> Path:
        """What the last line of a run shows: there once it has done its last step, and until it is opened again."""
        return self.path / "final.json"

    @property
    def start(self) -> Path:
        """Which checkpoint of another run this one began with."""
        return self.path / "start.json"

    def finish(self, result: Mapping[str, Any]) -> None:
        """Marks the run as done, with what its last line shows."""
        atomic_write_text(self.final, json.dumps(dict(result), indent=1) + "\n")

    def drop_after(self, last_step: int, evaluated: Collection[int] = ()) -> None:
        """Drops the lines of metrics.jsonl whose `step` comes after `last_step`, those of an evaluation (eval/...) of a
        step that is not `evaluated` to its end (of scores.jsonl too), and, with a warning, damaged ones."""

        def keep(row: Mapping[str, Any]) -> bool | None:
            step = row.get("step")
            if not isinstance(step, int) or not all(isinstance(value, int | float | None) for value in row.values()):
                return None
            return step <= last_step and (step in evaluated or not any(key.startswith("eval/") for key in row))

        truncate_jsonl(self.metrics, keep)
        truncate_jsonl(self.scores, lambda row: row["step"] in evaluated if isinstance(row.get("step"), int) else None)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _other_run(root: Path, changes: run_config.Changes) -> ValueError:
    restored = "Put back what a key named when the run was begun; or continue" if changes.contents else "Continue"
    lines = "\n".join(changes.refused)
    return ValueError(
        f"{root} holds a run of another configuration (there -> now):\n{lines}\n"
        f"{restored} that run with config={root / 'config.yaml'}, choose another experiment.project (which may resume "
        "from a checkpoint of this one: experiment.resume=PATH), or delete it and start anew with "
        "experiment.overwrite=true."
    )


def _check_place(root: Path) -> None:
    """ValueError unless `root` is a folder that can be written, or could be made."""
    try:
        nearest = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    except OSError as error:
        raise _unwritable(root, error) from error
    if not nearest.is_dir():
        raise ValueError(
            f"the run folder {root} cannot be made: {nearest} is a file. Choose another experiment.project or "
            "experiment.output_dir."
        )
    if not os.access(nearest, os.W_OK | os.X_OK, effective_ids=True):
        raise _unwritable(root, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _unwritable(root: Path, error: OSError) -> ValueError:
    return ValueError(
        f"cannot write to the run folder {root}: {error.strerror or error}. "
        "Choose another experiment.project or experiment.output_dir, or make it writable."
    )


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _delete_run(root: Path) -> None:
    """Deletes what runs make in `root`. config.yaml goes last: until then the folder still names its run."""
    for name in sorted(MADE_HERE, key=lambda name: name == "config.yaml"):
        path = root / name
        if path.is_symlink() and path.is_dir():
            for inner in path.iterdir():
                delete(inner)
        else:
            delete(path)
