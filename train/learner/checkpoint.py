"""Checkpoints on disk: model folders usable by themselves, with what the trainer needs to resume beside the weights."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from configs.commands import Command
from models.fingerprint import digest_of
from runtime.files import TEMPORARY, atomic_folder, delete, file_digest, naming
from runtime.steps import step_folder, step_folders, step_of

logger = logging.getLogger(__name__)

STATE = "trainer"
VALUE = "value"
AVERAGE = "ema"
BEST = "best"
LIST = "files.json"
CARD, BASE_CARD = "README.md", "README_base.md"
LIBRARY = "dllm-post-training"
"""Of models that this project trains, in their cards."""
RL, SFT = "rl.py", "train/sft.py"
_BESIDE = tuple(f"{name}/" for name in (STATE, VALUE, AVERAGE))
KINDS: Mapping[str, Command] = {RL: "rl", SFT: "sft"}


class Savable(Protocol):
    def save(self, path: Path, *, dtype: torch.dtype | None = None) -> None:
        """Writes a folder of weights, config and tokenizer. dtype: of the weights; default the model's."""


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds. command: the one that writes it (RL or SFT); state: the trainer's, of tensors and plain
    values; logs: files of the run beside ckpt/, which have grown to here when it is written; dtype: of the models'
    weights, default their own; card: of the model, as Markdown; average: the model with a running mean of its
    weights."""

    command: str
    model: Savable
    state: Mapping[str, Any]
    value: Savable | None = None
    logs: tuple[Path, ...] = ()
    dtype: torch.dtype | None = None
    card: str | None = None
    average: Savable | None = None


@dataclass(frozen=True)
class Listed:
    """trainer/files.json, read. sizes, digests: of each file by its path in the checkpoint; a checkpoint of 6db0e99 and
    before has no digests and no kind. logs: name -> [size, digest] of the run's logs at that step. The file proves
    itself by a digest of all that."""

    step: int
    sizes: Mapping[str, int]
    kind: str | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    logs: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    @staticmethod
    def read(checkpoint: Path) -> "Listed":
        """OSError where the file cannot be read, ValueError where it is damaged."""
        found = json.loads((checkpoint / STATE / LIST).read_bytes())
        try:
            if found.pop("proof", None) not in (None, _proof(found)):
                raise ValueError("it is not what was written")
            listed = Listed(**found)
            numbers = [listed.step, *listed.sizes.values(), *(size for size, _ in listed.logs.values())]
            names = [*listed.sizes, *listed.digests, *listed.digests.values(), *listed.logs]
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a list of files ({error})") from error
        if not all(isinstance(number, int) for number in numbers) or not all(isinstance(name, str) for name in names):
            raise ValueError("not a list of files and their sizes")
        if listed.digests and listed.digests.keys() != listed.sizes.keys():
            raise ValueError("not all files have a digest")
        return listed


def save_checkpoint(folder: Path, step: int, contents: Contents) -> Path:
    """Writes `folder`/step-NNNNNN aside and renames it: the model in its original layout, value/ with the value model,
    ema/ with the running mean, trainer/ with state and a list of all files, by which a resumed run checks that they are
    as they were written. OSError, with the older checkpoints whole, where the disk refuses."""
    path = step_folder(folder, step)
    with _explained(path), atomic_folder(path) as aside:
        contents.model.save(aside, dtype=contents.dtype)
        if contents.card is not None:
            put_card(aside, contents.card)
        if contents.value is not None:
            contents.value.save(aside / VALUE, dtype=contents.dtype)
        if contents.average is not None:
            contents.average.save(aside / AVERAGE, dtype=contents.dtype)
        (aside / STATE).mkdir()
        state = {**contents.state, "step": step, "torch_rng": torch.get_rng_state()}
        _write_state(aside / STATE / "state.pt", state)
        files = {str(file.relative_to(aside)): file for file in sorted(aside.rglob("*")) if file.is_file()}
        listed = {
            "step": step,
            "kind": KINDS[contents.command],
            "sizes": {name: file.stat().st_size for name, file in files.items()},
            "digests": {name: file_digest(file) for name, file in files.items()},
            "logs": {log.name: (log.stat().st_size, file_digest(log)) for log in contents.logs if log.is_file()},
        }
        with naming(aside / STATE / LIST):
            (aside / STATE / LIST).write_text(json.dumps(listed | {"proof": _proof(listed)}))
    return path


def put_card(folder: Path, text: str) -> None:
    """Makes `text` the card of a model's folder. One that the base brought along is kept as README_base.md."""
    card, kept = folder / CARD, folder / BASE_CARD
    if card.is_file() and not kept.exists() and f'library_name: "{LIBRARY}"' not in card.read_text(errors="replace"):
        card.rename(kept)
    card.write_text(text, encoding="utf-8")


def _proof(listed: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(listed).encode(), digest_size=16).hexdigest()


def _write_state(path: Path, state: Mapping[str, Any]) -> None:
    """OSError where the disk refuses, for which torch raises a RuntimeError over it."""
    try:
        with naming(path), path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        cause = error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """An error of the disk as one that names the checkpoint and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"checkpoint {path} could not be written ({error}). Older ones are whole: make room, or mend the disk, and "
            "type the same command to resume from the newest."
        ) from error


def point_to(checkpoint: Path, link_name: str, value_name: str | None = None, average_name: str | None = None) -> None:
    """Links beside the checkpoint, to its model, its value model and its running mean. A resumed run makes them again:
    a kill may have come between a checkpoint and its links."""
    _point(checkpoint.parent / link_name, checkpoint.name)
    if average_name is not None:
        _point(checkpoint.parent / average_name, f"{checkpoint.name}/{AVERAGE}")
    if value_name is not None:
        _point(checkpoint.parent / value_name, f"{checkpoint.name}/{VALUE}")


def _point(link: Path, target: str) -> None:
    """Makes `link` point to `target`. What is there and is no link stays, with a warning, unless it is a copy of what a
    checkpoint beside it holds: copying a run with its links followed leaves such folders."""
    if os.path.lexists(link) and not link.is_symlink():
        if not _is_copy(link):
            logger.warning("%s is no link of this run and stays as it is: the model is in %s", link, target)
            return
        aside = link.with_name(f".{link.name}{TEMPORARY}copy")
        link.rename(aside)
        delete(aside)
        logger.warning("%s was a copy of a checkpoint beside it, and is a link to %s again", link, target)
    fresh = link.with_name(f".{link.name}.link")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target, target_is_directory=True)
    os.replace(fresh, link)


def _is_copy(folder: Path) -> bool:
    """Whether a folder holds nothing but what a checkpoint beside it, or another model of one, holds too."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    for checkpoint in step_folders(folder.parent):
        for part in (checkpoint, checkpoint / VALUE, checkpoint / AVERAGE):
            if files and all(_same_file(path, part / name) for name, path in files.items()):
                return True
    return False


def _same_file(one: Path, other: Path) -> bool:
    return other.is_file() and one.stat().st_size == other.stat().st_size and file_digest(one) == file_digest(other)


def newest_checkpoint(folder: Path, *, proven: bool = True) -> Path | None:
    """The newest whole checkpoint; one that is not whole is named in a warning and passed over. proven: by the digests
    of all its files; else by their sizes, at no cost."""
    for path in reversed(step_folders(folder)):
        problem = problem_of(path, proven=proven)
        if problem is None:
            return path
        logger.warning("checkpoint %s is not whole (%s): passed over", path, problem)
    return None


def starting_checkpoint(folder: Path, resume: str, command: str, with_value: bool = False) -> Path | None:
    """What a run whose checkpoints lie in `folder` resumes from, by experiment.resume: auto, never, or the path of a
    `given_checkpoint`. ValueError where that forbids it, or where there are checkpoints and none is whole."""
    own = newest_checkpoint(folder)
    if own is None and (broken := step_folders(folder)):
        raise ValueError(
            f"no checkpoint in {folder} is whole (the newest, {broken[-1]}: "
            f"{problem_of(broken[-1], proven=True)}). Put a copy of one there, or move {folder} away to begin anew."
        )
    if resume == "never" and own is not None:
        raise ValueError(
            f"experiment.resume=never, but {folder} has {own.name}: choose another experiment.project, or move it away."
        )
    if resume in ("auto", "never") or own is not None:
        start = own
    else:
        start = given_checkpoint(resume, command, with_value, proven=True)
    if start is not None and not Listed.read(start).digests:
        logger.warning("checkpoint %s was written without digests: only the sizes of its files are checked", start)
    return start


def given_checkpoint(resume: str, command: str, with_value: bool = False, *, proven: bool = False) -> Path:
    """The checkpoint at the path that experiment.resume names, itself where that is a link to it: the link may lead
    elsewhere before all of it is read. ValueError where it is not whole, was not written by
    `command`, or lacks the value model of a run that trains one. proven: as in `newest_checkpoint`."""
    given = Path(resume).expanduser().resolve()
    if problem := problem_of(given, proven=proven):
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
    kind = Listed.read(path).kind or ("rl" if "curriculum" in read_state(path) else "sft")
    return next((command for command, name in KINDS.items() if name == kind), kind)


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
    found = {step: step_folder(folder, step) for step in sorted(scores)}
    whole = [step for step, path in found.items() if path.is_dir() and problem_of(path) is None]
    if not whole:
        if (folder / BEST).is_symlink():
            (folder / BEST).unlink()
        return None
    best = found[max(whole, key=lambda step: scores[step])]
    _point(folder / BEST, best.name)
    return best


def prune_checkpoints(folder: Path, keep_last: int, best: Path | None = None, last_step: int | None = None) -> None:
    """Removes all but the newest `keep_last` whole checkpoints and the best; 0 = none is removed. An incomplete one
    counts for none, and is removed once a newer one is whole. last_step: the newest of this run; those after it were
    passed over when it resumed, and stay until it comes there. Links and other names are the user's and stay."""
    paths = [path for path in reversed(step_folders(folder)) if last_step is None or (step_of(path) or 0) <= last_step]
    kept = list(islice((path for path in paths if problem_of(path) is None), keep_last))
    for path in paths[paths.index(kept[0]) :] if kept else []:
        if path not in kept and path != best and not path.is_symlink():
            delete(path)


def problem_of(path: Path, *, proven: bool = False) -> str | None:
    """Why a folder is no whole checkpoint, with the file that is at fault; None where it is one. proven: as in
    `newest_checkpoint`; where there are no digests, files are opened instead."""
    if not path.is_dir():
        return "there is no such folder"
    try:
        listed = Listed.read(path)
    except (OSError, ValueError, RecursionError) as error:
        return f"{STATE}/{LIST} cannot be read: {error}"
    if step_of(path) not in (None, listed.step):
        return f"{STATE}/{LIST} is of step {listed.step}"
    for name, size in listed.sizes.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{name} is missing or cut"
    if not proven:
        return None
    try:
        for name, digest in listed.digests.items():
            if file_digest(path / name) != digest:
                return f"{name} is damaged: it is not what was written"
        return None if listed.digests else _unreadable(path, listed)
    except OSError as error:
        return str(error)


def problem_of_model(folder: Path) -> str | None:
    """Why the model in a folder is not as it was written, with the file that is at fault; None where it is, or where
    the folder is no checkpoint of a run, or one without digests. The folders of a value model and of a running mean
    count too."""
    checkpoint = folder.resolve()
    part = ""
    if checkpoint.name in (VALUE, AVERAGE) and (checkpoint.parent / STATE / LIST).is_file():
        checkpoint, part = checkpoint.parent, f"{checkpoint.name}/"
    if not (checkpoint / STATE / LIST).is_file():
        return None
    try:
        listed = Listed.read(checkpoint)
        for name, digest in listed.digests.items():
            is_of_part = name.startswith(part) if part else not name.startswith(_BESIDE)
            if not is_of_part:
                continue
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
            if digest_of(checkpoint / name) != digest:
                return f"{name} is damaged"
    except (OSError, ValueError, RecursionError) as error:
        return f"{STATE}/{LIST} cannot be read: {error}"
    return None


def _unreadable(path: Path, listed: Listed) -> str | None:
    """The first file of a checkpoint without digests that cannot be opened."""
    for name in listed.sizes:
        try:
            if name.endswith(".safetensors"):
                with safe_open(path / name, "pt"):
                    pass
            elif name == f"{STATE}/state.pt":
                read_state(path)
            elif name.endswith(".json"):
                json.loads((path / name).read_bytes())
        except Exception as error:  # whatever a damaged file makes its reader raise
            return f"{name} is damaged: {str(error).splitlines()[0]}"
    return None
