"""Experiment trackers. Whatever happens to one, training continues: metrics.jsonl has everything."""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Warn = Callable[[str], Any]
PROJECT = "dllm-post-training"


class Tracker(NamedTuple):
    """log: takes a step's numbers; sample: one response of a step, its texts by name."""

    log: Callable[[int, Mapping[str, float]], Any]
    close: Callable[[], Any]
    sample: Callable[[int, Mapping[str, str]], Any] = lambda step, texts: None


def _tensorboard(folder: Path, config: Mapping[str, Any], warn: Warn) -> Tracker:
    """Event files in folder/trackers."""
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder / "trackers" / "tensorboard"))

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    def sample(step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            writer.add_text(f"sample/{name}", text, step)

    return Tracker(log, writer.close, sample)


def _logged_in(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False))
    except Exception:
        return False


def _wandb(folder: Path, config: Mapping[str, Any], warn: Warn) -> Tracker:
    """A Weights & Biases run; without a login that works it is kept offline in folder/trackers."""
    wandb = importlib.import_module("wandb")
    place = folder / "trackers"
    place.mkdir(parents=True, exist_ok=True)
    mode = os.environ.get("WANDB_MODE")
    if mode is None and not _logged_in(wandb):
        warn(f"wandb cannot log in from here: this run is kept offline in {place}, `wandb sync` sends it later")
        mode = "offline"
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    run = wandb.init(project=project, name=folder.name, config=dict(config), dir=str(place), mode=mode)

    def sample(step: int, texts: Mapping[str, str]) -> None:
        run.log({"sample": wandb.Table(columns=list(texts), data=[list(texts.values())])}, step=step)

    return Tracker(lambda step, metrics: run.log(dict(metrics), step=step), run.finish, sample)


def _trackio(folder: Path, config: Mapping[str, Any], warn: Warn) -> Tracker:
    """A trackio run, stored on this machine."""
    trackio = importlib.import_module("trackio")
    trackio.init(project=PROJECT, name=folder.name, config=dict(config))
    return Tracker(lambda step, metrics: trackio.log(dict(metrics), step=step), trackio.finish)


TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}


class Trackers:
    """The trackers of a run. One that is missing or raises is warned about and left out from then on.

    ValueError for a name that is none of TRACKERS.
    """

    def __init__(self, names: Sequence[str], folder: Path, config: Mapping[str, Any], warn: Warn) -> None:
        for name in names:
            if name not in TRACKERS:
                raise ValueError(f"unknown tracker {name!r}: choose among {', '.join(TRACKERS)}.")
        self._warn = warn
        self._active: dict[str, Tracker] = {}
        for name in names:
            with self._guard(name):
                self._active[name] = TRACKERS[name](folder, config, warn)

    @contextlib.contextmanager
    def _guard(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._active.pop(name, None)
            missing = isinstance(error, ImportError)
            fix = f" Install it: pip install -c requirements-extras.txt {name}" if missing else ""
            self._warn(f"tracker {name} failed, the run continues without it: {type(error).__name__}: {error}.{fix}")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, tracker in list(self._active.items()):
            with self._guard(name):
                tracker.log(step, metrics)

    def sample(self, step: int, texts: Mapping[str, str]) -> None:
        for name, tracker in list(self._active.items()):
            with self._guard(name):
                tracker.sample(step, texts)

    def close(self) -> None:
        for name, tracker in list(self._active.items()):
            with self._guard(name):
                tracker.close()
        self._active.clear()
