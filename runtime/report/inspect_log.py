"""An evaluation of eval.py as logs of Inspect AI (https://inspect.aisi.org.uk/eval-logs.html): a JSON file an entry."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runtime.files import atomic_write_text, read_jsonl
from runtime.report.run_data import RunData

FOLDER = "inspect"
_VERSION = 2
_SCORER = "reward"
_STOPS = {"stop": "stop", "length": "max_tokens"}


def write_logs(run: RunData) -> list[Path]:
    """Writes inspect/ENTRY.json in the run's folder, for each entry that has samples. ValueError for a run that is none
    of eval.py."""
    log = run.folder / "samples.jsonl"
    if not run.results or not log.is_file():
        raise ValueError(f"{run.folder} has no samples.jsonl and results.json: give the folder of an eval.py run.")
    by_entry: dict[str, list[Mapping[str, Any]]] = {}
    for row in read_jsonl(log):
        by_entry.setdefault(str(row.get("entry")), []).append(row)
    written_at = datetime.fromtimestamp((run.folder / "results.json").stat().st_mtime, UTC).isoformat(
        timespec="seconds"
    )
    paths = []
    for entry, rows in by_entry.items():
        path = run.folder / FOLDER / f"{entry.replace('/', '_')}.json"
        path.parent.mkdir(exist_ok=True)
        atomic_write_text(path, json.dumps(_log(run, entry, rows, written_at), indent=1, allow_nan=False) + "\n")
        paths.append(path)
    return paths


def _log(run: RunData, entry: str, rows: list[Mapping[str, Any]], at: str) -> dict[str, Any]:
    """An EvalLog. at: when the evaluation was written."""
    ids = list(dict.fromkeys(str(row["task"]) for row in rows))
    key = "model.compared_with" if entry.startswith("compared/") else "model.pretrained_model"
    model = str(run.config.get(key, ""))
    name = hashlib.sha256(f"{run.name} {entry} {at}".encode()).hexdigest()[:22]
    spec = {
        "eval_id": name,
        "run_id": name,
        "created": at,
        "task": entry,
        "task_id": name,
        "dataset": {"name": str(run.config.get("dataset.eval_dataset", "")), "samples": len(ids), "sample_ids": ids},
        "model": model,
        "config": {"epochs": max(row["sample"] for row in rows) + 1},
        "metadata": {name: value for name, value in run.config.items() if name.startswith("rollout.")},
    }
    figures = {name: {"name": name, "value": value} for name, value in run.results.get(entry, {}).items()}
    score = {"name": _SCORER, "scorer": _SCORER, "params": {}, "metrics": figures}
    tokens = sum(row["tokens"] for row in rows)
    return {
        "version": _VERSION,
        "status": "success",
        "eval": spec,
        "plan": {"name": "plan", "steps": [], "config": {}},
        "results": {"total_samples": len(rows), "completed_samples": len(rows), "scores": [score]},
        "stats": {"started_at": at, "completed_at": at, "model_usage": {model: _usage(tokens)}},
        "samples": [_sample(row, model) for row in rows],
    }


def _sample(row: Mapping[str, Any], model: str) -> dict[str, Any]:
    """A response: an epoch of its task. One without a reward has no score."""
    answer = {"role": "assistant", "content": row["completion"], "source": "generate", "model": model}
    stop = _STOPS.get(row["finish_reason"], "unknown")
    scores = {} if row["reward"] is None else {_SCORER: {"value": row["reward"], "answer": row["completion"]}}
    return {
        "id": str(row["task"]),
        "epoch": row["sample"] + 1,
        "input": row["prompt"],
        "target": _text(row["answer"]),
        "messages": [{"role": "user", "content": row["prompt"]}, answer],
        "output": {
            "model": model,
            "choices": [{"message": answer, "stop_reason": stop}],
            "usage": _usage(row["tokens"]),
        },
        "scores": scores,
        "metadata": {**row["columns"], "denoising_steps": row["num_steps"]},
    }


def _text(answer: Any) -> str | list[str]:
    if isinstance(answer, Iterable) and not isinstance(answer, str | Mapping):
        return [str(each) for each in answer]
    return "" if answer is None else str(answer)


def _usage(tokens: int) -> dict[str, int]:
    return {"input_tokens": 0, "output_tokens": tokens, "total_tokens": tokens}
