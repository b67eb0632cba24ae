"""Runs of benchmarks/study.py: each a process of its own, whose figures are one line of the results file."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.study_steps.variants import COMMON, TASKS, VARIANTS, Task

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Run:
    """What decides a run's figures; two equal ones are one run. questions: of an RL step."""

    task: str
    variant: str
    seed: int
    block_size: int
    steps: int
    questions: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.variant}-b{self.block_size}-q{self.questions}-s{self.steps}-{self.seed}"


@dataclass(frozen=True)
class Result:
    """A finished run: accuracy before and after with the latter's standard error over questions, tokens per forward
    before and after, updates and packed tokens trained, CPU seconds of the RL run with its evaluations, the commit."""

    run: Run
    before: float
    accuracy: float
    stderr: float
    speed_before: float
    speed: float
    updates: int
    packed_tokens: int
    cpu_seconds: float
    commit: str


def read_results(path: Path) -> dict[Run, Result]:
    """The finished runs of a results file; none where it is absent."""
    lines = path.read_text().splitlines() if path.is_file() else []
    rows = [json.loads(line) for line in lines if line.strip()]
    results = [Result(Run(**row.pop("run")), **row) for row in rows]
    return {result.run: result for result in results}


class Runner:
    """output: folder of the runs; results: file that gets a line a finished run, which is then never run again."""

    def __init__(self, output: Path, results: Path):
        self.output, self.results = output, results
        self.found = read_results(results)

    def run(self, run: Run) -> Result:
        """The run's figures, from the results file, or from running it now; one that was interrupted is resumed."""
        if run not in self.found:
            task = TASKS[run.task]
            model = self._prepare(task, run)
            self._call("rl.py", task.recipe, self._arguments(task, run, model), run.name)
            self.found[run] = self._read(run)
            self.results.parent.mkdir(parents=True, exist_ok=True)
            with self.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self.found[run])) + "\n")
        return self.found[run]

    def _arguments(self, task: Task, run: Run, model: Path) -> list[str]:
        blocks = [
            f"{section}.{key}={run.block_size}"
            for section in ("rollout", "evaluation")
            for key in ("block_size", "steps_per_block")
        ]
        return [
            f"model.pretrained_model={model}",
            f"training.seed={run.seed}",
            f"experiment.total_step={run.steps}",
            f"experiment.eval_every={run.steps}",
            f"experiment.save_every={max(1, run.steps // 2)}",
            f"rollout.num_task_per_step={run.questions}",
            f"evaluation.num_response_per_task={task.test_responses}",
            *COMMON,
            *([] if run.block_size == task.block_size else blocks),
            *VARIANTS[run.variant].arguments,
            *task.besides.get(run.variant, ()),
        ]

    def _prepare(self, task: Task, run: Run) -> Path:
        """The first model of this task, seed and size of a block; made if absent."""
        name = f"{task.sft}-b{run.block_size}-{run.seed}"
        folder = self.output / name / "ckpt" / "optimized"
        if not (folder / "config.json").is_file():
            arguments = [f"training.seed={run.seed}"]
            if run.block_size != task.block_size:
                arguments.append(f"training.block_size={run.block_size}")
            arguments += task.sft_besides.get(run.block_size, ())
            self._call("train/sft.py", task.sft, arguments, name)
        return folder

    def _call(self, script: str, recipe: str, arguments: Sequence[str], name: str) -> None:
        """Runs a script of this project on one thread in fp32; what it prints goes to a file, its CPU seconds to
        another, where a resumed run's add up."""
        self.output.mkdir(parents=True, exist_ok=True)
        log = self.output / f"{name}.log"
        always = (f"experiment.project={name}", f"experiment.output_dir={self.output}", "experiment.threads=1")
        command = [sys.executable, script, f"config=configs/{recipe}.yaml", *always, "training.mixed_precision=no"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        before = _cpu_seconds_of_children()
        try:
            with log.open("w") as file:
                subprocess.run(
                    [*command, *arguments], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, check=True
                )
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"{name} failed ({error.returncode}); what it printed is in {log}") from None
        finally:
            with (self.output / f"{name}.cpu").open("a") as file:
                file.write(f"{_cpu_seconds_of_children() - before:.1f}\n")

    def _read(self, run: Run) -> Result:
        folder = self.output / run.name
        evaluations = json.loads((folder / "evaluations.json").read_text())
        before, after = (next(iter(evaluations[str(step)].values())) for step in (0, run.steps))
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        steps: list[dict[str, Any]] = [row for row in map(json.loads, lines) if "updates" in row]
        seconds = (self.output / f"{run.name}.cpu").read_text().split()
        return Result(
            run,
            before["accuracy"],
            after["accuracy"],
            after["stderr"],
            before["tokens_per_forward"],
            after["tokens_per_forward"],
            int(sum(row["updates"] for row in steps)),
            int(sum(row["packed_tokens"] for row in steps)),
            sum(map(float, seconds)),
            _commit(),
        )


def _cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()
