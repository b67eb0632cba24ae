"""The report as a page: of one run with samples and settings, of several side by side."""

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from configs.load import find
from configs.sets import described
from runtime.files import atomic_write_text
from runtime.pages import page
from runtime.report.paired import paired
from runtime.report.panels import panels_of
from runtime.report.run_data import ABOUT, Curve, RunData, read_run
from runtime.text import printable

REPORT, TRACE = "report.html", "trace.html"
PARTS = Path(__file__).parent
LONGEST_TEXT = 6000
_IDS = ("rewards", "reward", "advantage", "num_steps", "finish_reason")
HELD_OUT = "validation/"
_TITLES = {"rl": "RL", "sft": "SFT", "eval": "evaluation"}


def write_report(folder: Path) -> Path:
    """Writes folder/report.html from what the folder holds now; its path. ValueError where that is no run's."""
    path = Path(folder) / REPORT
    atomic_write_text(path, build_page([read_run(folder)]))
    return path


def build_page(runs: Sequence[RunData], traced: Mapping[int, str] | None = None) -> str:
    """The page of these runs. traced: offset of a sample's line -> its place in the trace page beside the report."""
    names = distinct_names(runs)
    title = " · ".join(names)
    curves = [run.curves() for run in runs]
    one = runs[0] if len(runs) == 1 else None
    data = {
        "title": title,
        "facts": [_facts(run, name, kept) for run, name, kept in zip(runs, names, curves, strict=True)],
        "written": datetime.now().astimezone().isoformat(" ", "seconds"),
        "running": any(not run.finished for run in runs),
        "charts": panels_of(curves, names) if any(run.about.command != "eval" for run in runs) else [],
        "results": _results(one.results) if one else None,
        "comparison": None if one else compared(runs, names),
        "losses": [] if one else held_out_losses(curves, names),
        "samples": _samples(one, traced) if one else [],
        "settings": _settings(one) if one else _differences(runs),
        "names": names,
        "commands": _commands(one) if one else [],
    }
    return page(PARTS, f"{title} · report", data, "report.js")


def distinct_names(runs: Sequence[RunData]) -> list[str]:
    """A name for each run: its own, its folder where two have the same."""
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else str(run.folder) for run, name in zip(runs, names, strict=True)]


def _facts(run: RunData, name: str, curves: Mapping[str, Any]) -> dict[str, Any]:
    """The head of a run: where it is and what it uses."""
    steps = max((row["step"] for row in run.rows if isinstance(row.get("step"), int)), default=0)
    total = run.config.get("experiment.total_step") if run.about.command == "rl" else None
    state = "finished" if run.finished else f"step {steps:,}" + (f" of {total:,}" if isinstance(total, int) else "")
    seconds = sum(curves.get("time/step_seconds", ((), ()))[1])
    data = {"rl": "dataset.train_dataset", "sft": "dataset.optimization_data", "eval": "dataset.eval_dataset"}
    rows = {
        "kind": _TITLES.get(run.about.command, run.about.command),
        "state": state,
        "time": _duration(seconds) if seconds else "",
        "model": run.config.get("model.pretrained_model"),
        "data": described(run.config.get(data[run.about.command])),
        "recipe": run.about.recipe,
        "seed": run.config.get("training.seed"),
        "folder": str(run.folder),
    }
    shown = {key: _shown(value) for key, value in rows.items() if value not in (None, "")}
    return {"name": name, "rows": list(shown.items())}


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 180 else f"{minutes / 60:.1f} h"


def _shown(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return ", ".join(value)
    return value if isinstance(value, str) else str(value)


def _results(results: Mapping[str, Mapping[str, float]]) -> dict[str, Any] | None:
    """eval.py's figures as a table: a row an entry, a column a metric that is a number."""
    if not results:
        return None
    columns = list(dict.fromkeys(key for entry in results.values() for key, v in entry.items() if _is_number(v)))
    rows = [[name, *(entry.get(column) for column in columns)] for name, entry in results.items()]
    return {"columns": columns, "rows": rows}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def compared(runs: Sequence[RunData], names: Sequence[str]) -> list[dict[str, Any]] | None:
    """For each decoding that the first run and another have both evaluated last: their accuracies, and the difference,
    paired by task where both runs kept what each task earned. None where no run has an evaluation."""
    rows = []
    last = [_last_evaluations(run) for run in runs]
    if not any(last):
        return None
    for entry, (step, before) in last[0].items():
        for other in range(1, len(runs)):
            if entry not in last[other]:
                continue
            other_step, after = last[other][entry]
            row: dict[str, Any] = {
                "entry": entry,
                "first": names[0],
                "second": names[other],
                "steps": [step, other_step],
            }
            row |= {"figures": [_figures(before), _figures(after)], "pair": None}
            given = (runs[0].scores.get((step, entry)), runs[other].scores.get((other_step, entry)))
            if given[0] is not None and given[1] is not None and (found := paired(given[0], given[1])):
                row["pair"] = vars(found)
            rows.append(row)
    return rows


def held_out_losses(curves: Sequence[Mapping[str, Curve]], names: Sequence[str]) -> list[dict[str, Any]]:
    """For each figure of held-out examples (`validation/...`) that the first run and another have: the last of each,
    and the lowest."""
    rows = []
    for metric in (name for name in curves[0] if name.startswith(HELD_OUT)):
        for other in range(1, len(curves)):
            if metric not in curves[other]:
                continue
            pair = [curves[0][metric], curves[other][metric]]
            rows.append(
                {
                    "figure": metric.removeprefix(HELD_OUT),
                    "names": [names[0], names[other]],
                    "steps": [steps[-1] for steps, _ in pair],
                    "last": [values[-1] for _, values in pair],
                    "lowest": [min(values) for _, values in pair],
                }
            )
    return rows


def _figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    names = ("accuracy", "stderr", "reward", "length", "tokens_per_forward", "tasks")
    return {name: metrics.get(name) for name in names}


def _last_evaluations(run: RunData) -> dict[str, tuple[int, dict[str, Any]]]:
    """Decoding -> (step, metrics) of its last evaluation."""
    found: dict[str, tuple[int, dict[str, Any]]] = {name: (0, dict(entry)) for name, entry in run.results.items()}
    for row in run.rows:
        for key, value in row.items():
            start, _, rest = key.partition("/")
            name, _, metric = rest.rpartition("/")
            if start == "eval" and name and isinstance(row.get("step"), int):
                if found.get(name, (-1, {}))[0] != row["step"]:
                    found[name] = row["step"], {}
                found[name][1][metric] = value
    return found


def _samples(run: RunData, traced: Mapping[int, str] | None) -> list[dict[str, Any]]:
    """Rows of the sample table, newest first."""
    rows = []
    for place, row in reversed(run.samples):
        shown = {
            "step": row.get("step"),
            "entry": row.get("entry"),
            "task": _cut(row.get("task")),
            "prompt": _cut(row.get("prompt")),
            "completion": _cut(row.get("completion", row.get("text"))),
            "answer": _cut(row.get("answer")),
            **{name: row.get(name) for name in _IDS},
            "tokens": row.get("num_response_tokens", row.get("tokens")),
        }
        rows.append({name: value for name, value in shown.items() if value is not None} | _link(place, traced))
    return rows


def _link(place: int, traced: Mapping[int, str] | None) -> dict[str, str]:
    return {"trace": f"{TRACE}{traced[place]}"} if traced and place in traced else {}


def _cut(value: Any) -> str | None:
    """A text of at most LONGEST_TEXT characters, the middle of a longer one left out."""
    if value is None:
        return None
    text, half = printable(value if isinstance(value, str) else str(value)), LONGEST_TEXT // 2
    return text if len(text) <= LONGEST_TEXT else f"{text[:half]} … {text[-half:]}"


def _settings(run: RunData) -> dict[str, Any]:
    """Every key with its value; and those that differ from the recipe, with both."""
    changed = [[key, _shown(then), _shown(now)] for key, (then, now) in run.about.changed.items()]
    return {
        "recipe": run.about.recipe,
        "known": (run.folder / ABOUT).is_file(),
        "changed": changed,
        "all": [[key, _shown(value)] for key, value in run.config.items()],
    }


def _differences(runs: Sequence[RunData]) -> dict[str, Any]:
    """The keys in which runs differ, with the value of each; names and folders of runs aside."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    rows = []
    for key in keys:
        values = [run.config.get(key) for run in runs]
        if key not in ("experiment.project", "experiment.output_dir") and any(value != values[0] for value in values):
            rows.append([key, *(_shown("" if value is None else value) for value in values)])
    return {"changed": rows}


def _commands(run: RunData) -> list[list[str]]:
    """What to type next: (purpose, command)."""
    folder = shlex.quote(str(run.folder))
    script = {"rl": "rl.py", "sft": "train/sft.py", "eval": "eval.py"}[run.about.command]
    rows = [["report and traces again", f"python sample/get_report.py {folder}"]]
    rows.append(["compare with another run", f"python sample/get_report.py {folder} OTHER_RUN -o comparison.html"])
    if run.about.command == "eval":
        return [["evaluate again", f"python {script} config={folder}/config.yaml"], *rows]
    model = f"{folder}/ckpt/{run.config.get('model.optimized_name', 'optimized')}"
    evaluate = f"python eval.py config={_eval_recipe(run)} model.pretrained_model={model}"
    longer = "experiment.total_step" if script == "rl.py" else "training.max_steps or training.num_train_epochs"
    resume = "resume" if not run.finished else f"go on (with a larger {longer})"
    return [
        [resume, f"python {script} config={folder}/config.yaml"],
        ["export in bf16, for use elsewhere", f"python models/export.py {model} -o {shlex.quote(run.name)}-model"],
        ["evaluate", f"{evaluate} experiment.project={shlex.quote(run.name + '-eval')}"],
        *rows,
    ]


def _eval_recipe(run: RunData) -> str:
    """The evaluation recipe that belongs to the run's, configs/NAME_eval.yaml."""
    words = Path(run.about.recipe).stem.split("_")
    named = next((f"configs/{word}_eval.yaml" for word in words if find(f"configs/{word}_eval.yaml").is_file()), None)
    return named or "configs/NAME_eval.yaml"
