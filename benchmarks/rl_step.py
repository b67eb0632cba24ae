"""An RL step by phase: seconds and share of each, of steps of a real run.

    python benchmarks/rl_step.py [--steps 4] [config=configs/rl_sdar.yaml a.b=c ...]

Runs rl.py without evaluations and saves it in a folder that is deleted; without a config, a random model of two layers
on the tiny task. The first step, in which kernels are compiled and steps captured, is left out. What is neither
sampling (rollout), grading (reward) nor training (update, value) is overhead. Ends with one line of JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.tiny_runs import ROOT, Workspace, read_rows

WORK = ("rollout", "reward", "update", "value")
_STEP = "time/step_seconds"


def run(folder: Path, arguments: Sequence[str], steps: int) -> list[dict[str, Any]]:
    """The metrics of each step of a run of rl.py in `folder`. RuntimeError, with what it said, where it fails."""
    command = ["rl.py", *arguments] if arguments else Workspace(folder / "tiny", steps).command("rl", "steps")
    command += [f"experiment.output_dir={folder}", "experiment.project=steps", f"experiment.total_step={steps}"]
    command += ["evaluation.eval_dataset=null", f"experiment.save_every={steps}"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return [row for row in read_rows(folder / "steps" / "metrics.jsonl") if _STEP in row]


def phases(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean seconds of each phase of these steps, saves aside; "rest": what no phase has."""
    found: dict[str, float] = {}
    for row in rows:
        named = {name: spent for name, spent in row.items() if name.startswith("time/") and name.endswith("_seconds")}
        whole = named.pop(_STEP)
        for name, spent in (named | {"time/rest_seconds": whole - sum(named.values())}).items():
            phase = name.removeprefix("time/").removesuffix("_seconds")
            found[phase] = found.get(phase, 0.0) + spent / len(rows)
    found.pop("save", None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="of the run, at least 2; the first one is not counted")
    parser.add_argument("arguments", nargs="*", help="of rl.py")
    chosen = parser.parse_args()
    if chosen.steps < 2:
        parser.error("--steps must be at least 2: the first one is not counted.")
    with tempfile.TemporaryDirectory() as folder:
        seconds = phases(run(Path(folder), chosen.arguments, chosen.steps)[1:])
    total = sum(seconds.values())
    print(f"{'phase':12}{'seconds':>10}{'share':>8}")
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"{name:12}{spent:10.3f}{spent / total:8.1%}")
    overhead = sum(spent for name, spent in seconds.items() if name not in WORK) / total
    print(json.dumps({"benchmark": "rl_step", "seconds": total, "overhead_share": overhead, "phases": seconds}))


if __name__ == "__main__":
    main()
