"""start.json of a run's folder: the checkpoint of another run that it began with (experiment.resume=PATH).

The path may be a link that moves on (ckpt/optimized). Until the run has a checkpoint of its own it begins with the same
one again.
"""

import json
import logging
from pathlib import Path

from runtime.files import atomic_write_text, file_digest
from runtime.run_folder import RunFolder
from train.learner.checkpoint import LIST, STATE

_BEGIN = "or begin another run: experiment.project=NAME"
logger = logging.getLogger(__name__)


def keep_start(folder: RunFolder, checkpoint: Path) -> None:
    """Writes which checkpoint the run begins with."""
    kept = {"checkpoint": str(checkpoint.resolve()), "files": _digest(checkpoint)}
    atomic_write_text(folder.start, json.dumps(kept) + "\n")


def first_start(folder: RunFolder, resume: str) -> str:
    """experiment.resume for a run without a checkpoint of its own: the path that it began with, else `resume`. One
    warning where the two differ. ValueError where that checkpoint is gone or another one now, or the file is damaged.
    """
    if not folder.start.is_file():
        return resume
    checkpoint, digest = _read(folder.start)
    if _digest(checkpoint) != digest:
        raise ValueError(
            f"{folder.path} began with {checkpoint}, which is gone or another checkpoint now: put it back, {_BEGIN}."
        )
    if resume not in ("auto", "never") and Path(resume).expanduser().resolve() != checkpoint:
        logger.warning(
            "experiment.resume=%s: this run began with %s and begins with it again; another start needs another "
            "experiment.project",
            *(resume, checkpoint),
        )
    return str(checkpoint)


def _digest(checkpoint: Path) -> str:
    """Of its list of files, which has theirs; empty where it is gone."""
    try:
        return file_digest(checkpoint / STATE / LIST)
    except OSError:
        return ""


def _read(path: Path) -> tuple[Path, str]:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return Path(kept["checkpoint"]), str(kept["files"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): put a copy of it back, {_BEGIN}.") from error
