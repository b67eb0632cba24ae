"""Checkpoints on disk: model folders usable by themselves, with what the trainer needs to resume beside the weights."""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch

from runtime.files import atomic_folder

logger = logging.getLogger(__name__)

STATE = "trainer"
VALUE = "value"
BEST = "best"
LIST = "files.json"
RL, SFT = "rl.py", "train/sft.py"
KINDS = {RL: "rl", SFT: "sft"}


class Savable(Protocol):
    def save(self, path: Path) -> None:
        """Writes a folder of weights, config and tokenizer."""


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds. command: the one that writes it (RL or SFT); state: the trainer's, of tensors and plain
    values."""

    command: str
    model: Savable
    state: Mapping[str, Any]
    value: Savable | None = None


def save_checkpoint(folder: Path, step: int, contents: Contents) -> Path:
    """Writes `folder`/step-NNNNNN aside and renames it: the model in its original layout, trainer/ with state and a
    list of files, value/ with the value model."""
    path = folder / f"step-{step:06d}"
    with _explained(path), atomic_folder(path) as aside:
        contents.model.save(aside)
        if contents.value is not None:
            contents.value.save(aside / VALUE)
        (aside / STATE).mkdir()
        state = {**contents.state, "step": step, "torch_rng": torch.get_rng_state()}
        torch.save(state, aside / STATE / "state.pt")
        sizes = {str(p.relative_to(aside)): p.stat().st_size for p in sorted(aside.rglob("*")) if p.is_file()}
        listed = {"step": step, "kind": KINDS[contents.command], "sizes": sizes}
        (aside / STATE / LIST).write_text(json.dumps(listed))
    return path


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """An error of the disk as one that says what is left and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"checkpoint {path} could not be written ({error}). Older ones are whole: make room, or mend the disk, and "
            "type the same command to resume from the newest."
        ) from error


def point_to(checkpoint: Path, link_name: str, value_name: str | None = None) -> None:
    """Links beside the checkpoint, to its model and its value model. A resumed run makes them again: a kill may have
    come between a checkpoint and its links."""
    _point(checkpoint.parent / link_name, checkpoint.name)
    if value_name is not None:
        _point(checkpoint.parent / value_name, f"{checkpoint.name}/{VALUE}")


def _point(link: Path, target: str) -> None:
    if not link.exists() or link.is_symlink():
        fresh = link.with_name(f".{link.name}.link")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target, target_is_directory=True)
        os.replace(fresh, link)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; an incomplete one is named in a warning and passed over."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if problem := _problem(path):
            logger.warning("checkpoint %s is not whole (%s): passed over", path, problem)
        else:
            return path
    return None


def starting_checkpoint(folder: Path, resume: str, command: str, with_value: bool = False) -> Path | None:
    """What a run whose checkpoints lie in `folder` resumes from, by experiment.resume: auto, never, or the path of a
    `given_checkpoint`. ValueError where that forbids it."""
    own = newest_checkpoint(folder)
    if resume == "never" and own is not None:
        raise ValueError(
            f"experiment.resume=never, but {folder} has {own.name}: choose another experiment.project, or move it away."
        )
    if resume in ("auto", "never") or own is not None:
        return own
    return given_checkpoint(resume, command, with_value)


def given_checkpoint(resume: str, command: str, with_value: bool = False) -> Path:
    """The checkpoint at the path that experiment.resume names. ValueError where it is not whole, was not written by
    `command`, or lacks the value model of a run that trains one."""
    given = Path(resume).expanduser()
    if problem := _problem(given):
        raise ValueError(f"experiment.resume={resume} is not a whole checkpoint of a run: {problem}.")
    written_by = _written_by(given)
    begin = f"begin with its weights alone: leave experiment.resume out and set model.pretrained_model={resume}."
    if written_by != command:
        raise ValueError(f"experiment.resume={resume} was written by {written_by}; {command} can only {begin}")
    if with_value and not (given / VALUE).is_dir():
        raise ValueError(
            f"experiment.resume={resume} has no value model, and this run trains one: leave model.value_base_model "
            f"out, or {begin}"
        )
    return given


def _written_by(path: Path) -> str:
    """The command that wrote a whole checkpoint. A list of files without a kind is of a time when only RL's state had a
    curriculum."""
    kind = _listed(path).get("kind") or ("rl" if "curriculum" in read_state(path) else "sft")
    return next(command for command, name in KINDS.items() if name == kind)


def read_state(path: Path) -> dict[str, Any]:
    """The trainer's state of a checkpoint, left on disk until it is read."""
    state: dict[str, Any] = torch.load(path / STATE / "state.pt", weights_only=True, mmap=True)
    return state


def restore_random(state: Mapping[str, Any]) -> None:
    """Puts torch's random generator where a trainer's state left it."""
    torch.set_rng_state(state["torch_rng"])


def point_to_best(folder: Path, scores: Mapping[int, float]) -> Path | None:
    """Links `folder`/best to the whole checkpoint with the highest score (by step), the first of equals, and returns
    it; None, and no link, where no step has both."""
    found = {step: folder / f"step-{step:06d}" for step in sorted(scores)}
    whole = [step for step, path in found.items() if path.is_dir() and _problem(path) is None]
    if not whole:
        if (folder / BEST).is_symlink():
            (folder / BEST).unlink()
        return None
    best = found[max(whole, key=lambda step: scores[step])]
    _point(folder / BEST, best.name)
    return best


def prune_checkpoints(folder: Path, keep_last: int, best: Path | None = None) -> None:
    """Removes all but the newest `keep_last` whole checkpoints and the best; 0 = none is removed. An incomplete one
    counts for none, and is removed once a newer one is whole."""
    paths = sorted(folder.glob("step-*"), reverse=True)
    kept = list(islice((path for path in paths if _problem(path) is None), keep_last))
    for path in paths[paths.index(kept[0]) :] if kept else []:
        if path not in kept and path != best:
            shutil.rmtree(path)


def _listed(path: Path) -> dict[str, Any]:
    """What trainer/files.json of a checkpoint says: its step, the kind of run, sizes of files."""
    listed: dict[str, Any] = json.loads((path / STATE / LIST).read_text())
    return listed


def _problem(path: Path) -> str | None:
    if not path.is_dir():
        return "there is no such folder"
    try:
        sizes = _listed(path)["sizes"]
    except (OSError, ValueError, KeyError) as error:
        return f"no list of files: {type(error).__name__}"
    for name, size in sizes.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{name} is missing or cut"
    return None
