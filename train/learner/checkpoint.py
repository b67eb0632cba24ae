"""A run on disk: model folders usable by themselves, with what the trainer needs to go on beside the weights."""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from models import DiffusionLM, ValueModel
from runtime.files import atomic_folder

logger = logging.getLogger(__name__)

STATE = "trainer"
VALUE = "value"
BEST = "best"
RL, SFT = "rl.py", "train/sft.py"


def save_checkpoint(
    folder: Path,
    step: int,
    model: DiffusionLM,
    state: dict[str, Any],
    link_name: str,
    value: tuple[ValueModel, str] | None = None,
) -> Path:
    """Writes `folder`/step-NNNNNN aside and renames it: the model in its original layout, trainer/ with state and a
    list of sizes, value/ with the value model.

    `folder`/`link_name` then points to it, and the name that is given with a value model to its value/.
    """
    path = folder / f"step-{step:06d}"
    with _said(path), atomic_folder(path) as aside:
        model.save(aside)
        if value is not None:
            value[0].save(aside / VALUE)
        (aside / STATE).mkdir()
        torch.save(state | {"step": step, "torch_rng": torch.get_rng_state()}, aside / STATE / "state.pt")
        sizes = {str(p.relative_to(aside)): p.stat().st_size for p in sorted(aside.rglob("*")) if p.is_file()}
        (aside / STATE / "files.json").write_text(json.dumps({"step": step, "sizes": sizes}))
    point_to(path, link_name, value[1] if value is not None else None)
    return path


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """An error of the disk as one that says what is left and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"checkpoint {path} could not be written ({error}). Older ones are whole: make room, or mend the disk, and "
            "type the same command to go on from the newest."
        ) from error


def point_to(checkpoint: Path, link_name: str, value_name: str | None) -> None:
    """Links beside the checkpoint, to its model and its value model. A resumed run says it again: a kill may have come
    between a checkpoint and its links."""
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
    """The newest whole checkpoint; a torn one is named in a warning and passed over."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        if problem := _problem(path):
            logger.warning("checkpoint %s is not whole (%s): passed over", path, problem)
        else:
            return path
    return None


def starting_checkpoint(folder: Path, resume: str, command: str, with_value: bool = False) -> Path | None:
    """What a run whose checkpoints lie in `folder` goes on from, by experiment.resume: auto, never, or the path of a
    `given_checkpoint`. ValueError where that says no."""
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
    state = _read_state(given)
    written_by = RL if "curriculum" in state else SFT
    begin = f"begin with its weights alone: leave experiment.resume out and set model.pretrained_model={resume}."
    if written_by != command:
        raise ValueError(f"experiment.resume={resume} was written by {written_by}; {command} can only {begin}")
    if with_value and "value_updater" not in state:
        raise ValueError(
            f"experiment.resume={resume} has no value model, and this run trains one: leave model.value_base_model "
            f"out, or {begin}"
        )
    return given


def load_state(path: Path) -> dict[str, Any]:
    """The trainer's state of a checkpoint, left on disk until it is read; restores torch's random generator."""
    state = _read_state(path)
    torch.set_rng_state(state["torch_rng"])
    return state


def _read_state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path / STATE / "state.pt", weights_only=True, mmap=True)
    return state


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
    """Removes all but the newest `keep_last` whole checkpoints and the best; 0 = none is removed. A torn one counts for
    none, and is removed once a newer one is whole."""
    paths = sorted(folder.glob("step-*"), reverse=True)
    kept = list(islice((path for path in paths if _problem(path) is None), keep_last))
    for path in paths[paths.index(kept[0]) :] if kept else []:
        if path not in kept and path != best:
            shutil.rmtree(path)


def _problem(path: Path) -> str | None:
    if not path.is_dir():
        return "there is no such folder"
    try:
        sizes = json.loads((path / STATE / "files.json").read_text())["sizes"]
    except (OSError, ValueError, KeyError) as error:
        return f"no list of files: {type(error).__name__}"
    for name, size in sizes.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{name} is missing or cut"
    return None
