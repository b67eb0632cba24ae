"""Experiment trackers. Whatever happens to one, training continues: metrics.jsonl has everything."""

import contextlib
import html
import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Warn = Callable[[str], Any]
PROJECT = "dllm-post-training"


Rows = Sequence[Mapping[str, Any]]


class Tracker(NamedTuple):
    """log: takes a step's numbers; table: rows of a step under a name, all with the same columns (samples, the figures
    of evaluations)."""

    log: Callable[[int, Mapping[str, float]], Any]
    close: Callable[[], Any]
    table: Callable[[int, str, Rows], Any] = lambda step, name, rows: None


def how_to_install(name: str) -> str:
    """The command that installs a tracker's package in the version that was tried."""
    return f"pip install -c requirements-extras.txt {name}"


def _columns(rows: Rows) -> tuple[list[str], list[list[Any]]]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return names, [[row.get(name) for name in names] for row in rows]


def _place(folder: Path, name: str) -> Path:
    place = folder / "trackers" / name
    place.mkdir(parents=True, exist_ok=True)
    return place


def _tensorboard(folder: Path, config: Mapping[str, Any], warn: Warn) -> Tracker:
    """Event files in folder/trackers."""
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder / "trackers" / "tensorboard"))

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            writer.add_scalar(key, value, step)
        writer.flush()

    def table(step: int, name: str, rows: Rows) -> None:
        names, cells = _columns(rows)
        lines = [names, ["---"] * len(names), *cells]
        writer.add_text(name, "\n".join(f"| {' | '.join(map(_markdown, line))} |" for line in lines), step)

    return Tracker(log, writer.close, table)


def _markdown(cell: Any) -> str:
    """A cell of a table, whose own marks mean nothing."""
    text = html.escape(str(cell)).replace("\n", "<br>")
    return re.sub(r"([\\`*_{}\[\]()#+!|~$])", r"\\\1", text)


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

    def table(step: int, name: str, rows: Rows) -> None:
        names, cells = _columns(rows)
        run.log({name: wandb.Table(columns=names, data=cells)}, step=step)

    return Tracker(lambda step, metrics: run.log(dict(metrics), step=step), run.finish, table)


def _trackio(folder: Path, config: Mapping[str, Any], warn: Warn) -> Tracker:
    """A trackio run, stored on this machine."""
    trackio = importlib.import_module("trackio")
    trackio.init(project=PROJECT, name=folder.name, config=dict(config))

    def table(step: int, name: str, rows: Rows) -> None:
        pandas = importlib.import_module("pandas")
        trackio.log({name: trackio.Table(dataframe=pandas.DataFrame([dict(row) for row in rows]))}, step=step)

    return Tracker(lambda step, metrics: trackio.log(dict(metrics), step=step), trackio.finish, table)


def _mlflow(folder: Path, config: Mapping[str, Any], warn: Warn) -> Tracker:
    """An MLflow run where MLFLOW_TRACKING_URI says, else in files under folder/trackers."""
    mlflow = importlib.import_module("mlflow")
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # its other stores are databases
        mlflow.set_tracking_uri(_place(folder, "mlflow").absolute().as_uri())
    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
    run = mlflow.start_run(run_name=folder.name)
    mlflow.log_dict(dict(config), "config.json")

    def log(step: int, metrics: Mapping[str, float]) -> None:
        numbers = {re.sub(r"[^\w\-. /]", "_", key): float(value) for key, value in metrics.items()}
        mlflow.log_metrics(numbers, step=step, run_id=run.info.run_id)

    def table(step: int, name: str, rows: Rows) -> None:
        names, cells = _columns(rows)
        mlflow.log_dict({"columns": names, "data": cells}, f"{name}/step-{step:06d}.json", run_id=run.info.run_id)

    return Tracker(log, mlflow.end_run, table)


def _swanlab(folder: Path, config: Mapping[str, Any], warn: Warn) -> Tracker:
    """A SwanLab run; without a key in SWANLAB_API_KEY it is kept offline in folder/trackers."""
    swanlab = importlib.import_module("swanlab")
    place, mode = _place(folder, "swanlab"), os.environ.get("SWANLAB_MODE")
    if mode is None and not os.environ.get("SWANLAB_API_KEY"):
        warn(f"SWANLAB_API_KEY is not set: this run is kept offline in {place}, `swanlab sync` sends it later")
        mode = "offline"
    run = swanlab.init(
        project=os.environ.get("SWANLAB_PROJECT", PROJECT),
        experiment_name=folder.name,
        config=dict(config),
        logdir=str(place),
        mode=mode,
    )

    def table(step: int, name: str, rows: Rows) -> None:
        names, cells = _columns(rows)
        made = swanlab.echarts.Table()
        made.add(names, [[str(cell) for cell in line] for line in cells])
        run.log({name: made}, step=step)

    return Tracker(lambda step, metrics: run.log(dict(metrics), step=step), swanlab.finish, table)


TRACKERS = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
    "mlflow": _mlflow,
    "swanlab": _swanlab,
}


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
            fix = f" Install it: {how_to_install(name)}" if missing else ""
            self._warn(f"tracker {name} failed, the run continues without it: {type(error).__name__}: {error}.{fix}")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, tracker in list(self._active.items()):
            with self._guard(name):
                tracker.log(step, metrics)

    def table(self, step: int, title: str, rows: Rows) -> None:
        """Rows of a step under a title."""
        for name, tracker in list(self._active.items()):
            with self._guard(name):
                tracker.table(step, title, rows)

    def close(self) -> None:
        for name, tracker in list(self._active.items()):
            with self._guard(name):
                tracker.close()
        self._active.clear()
