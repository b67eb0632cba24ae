"""Runs that are killed at random moments and typed again, against one that never was: the same bits in the end?

    python benchmarks/kill.py [--kills 20] [--processes 1] [--steps 6] [--seed 1] [--output FOLDER]

Every run is `rl.py` on the tiny task with a random model of two layers of width 32 that is made here, fp32, one thread
a process, `experiment.deterministic=true`, a checkpoint every second step and an evaluation every third. The first one
goes through. Each of the others begins anew, is killed (SIGKILL to the process group of every process) in the rollout,
the update, the evaluation or the save of a step that the seed draws, after a share of the time that the first run spent
there, and is then typed again. The moments are taken from the run's own signs of life (heartbeat/); what the last
sign said when the run was dead is the phase that was hit.

"redone" counts the steps after the newest checkpoint that had begun, "from disk" those of them whose rollouts and
rewards were not made again. "equal" asks for the same bits: final weights, optimizer state, every line of
metrics.jsonl, graded.jsonl and evaluations.json (what a clock measures aside) and every line of rollouts.jsonl. Exit
status 1 where a run is not equal. Ends with one line of JSON.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from runtime import heartbeat

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("rollout", "update", "eval", "save")
SAVE_EVERY, EVAL_EVERY = 2, 3
PATIENCE_SECONDS = 300.0
ATTEMPTS = 10
CONFIG = f"""
experiment: {{save_every: {SAVE_EVERY}, eval_every: {EVAL_EVERY}, deterministic: true, threads: 1}}
dataset: {{train_dataset: tiny_train, data_type: general, template: plain, max_tasks: 64}}
model: {{random_init: true, device: cpu}}
rollout: {{num_task_per_step: 8, num_response_per_task: 4, max_new_tokens: 15, block_size: 4, max_slots: 16,
  threshold: 0.4}}
reward: {{function: "{{reward}}:share_of_digits", workers: 1}}
training: {{gradient_accumulation_steps: 1, batch_size_lm: 32, num_train_epochs: 2, max_tokens_per_microbatch: 512,
  mixed_precision: "no"}}
optimizer: {{params: {{learning_rate: 1.0e-3}}}}
evaluation: {{eval_dataset: tiny_test, data_type: general, max_tasks: 16, max_slots: 16, max_new_tokens: 15,
  block_size: 4, threshold: 0.4, top_k: [0, 1]}}
"""
REWARD = '''
def share_of_digits(prompts, completions, **columns):
    """What a random model earns in part, so that every step has something to learn."""
    return [sum(c in "01234" for c in text) / max(1, len(text)) for text in completions]
'''


@dataclass(frozen=True)
class Kill:
    """One run that was killed. wanted, hit: phases; step: in which it died; redone, from_disk: numbers of steps."""

    wanted: str
    hit: str
    step: int
    redone: int
    from_disk: int
    differs: str


class Bench:
    """The runs of one call, in a folder of their own."""

    def __init__(self, folder: Path, steps: int, processes: int):
        self.folder, self.steps, self.processes = folder, steps, processes
        self.model = folder / "model"
        self.model.mkdir(parents=True)
        tiny = ROOT / "configs" / "tiny_model"
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            (self.model / name).write_bytes((tiny / name).read_bytes())
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
        config = json.loads((tiny / "config.json").read_text()) | sizes
        (self.model / "config.json").write_text(json.dumps(config))
        (folder / "reward.py").write_text(REWARD)
        (folder / "rl.yaml").write_text(CONFIG.replace("{reward}", str(folder / "reward.py")))

    def start(self, project: str) -> subprocess.Popen[bytes]:
        """A run of this name, new or resumed; what it prints is added to a file."""
        words = [
            f"config={self.folder / 'rl.yaml'}",
            f"experiment.project={project}",
            f"experiment.output_dir={self.folder}",
            f"experiment.total_step={self.steps}",
            f"experiment.processes={self.processes}",
            f"model.pretrained_model={self.model}",
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with self._log(project).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, str(ROOT / "rl.py"), *words],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self, project: str) -> None:
        """Runs to the end. SystemExit where that fails."""
        if self.start(project).wait(PATIENCE_SECONDS) != 0:
            raise SystemExit(f"{project} failed; what it printed is in {self._log(project)}")

    def kill(self, number: int, wanted: str, rng: random.Random, spent: dict[str, float]) -> Kill:
        """Kills run `number` in the phase `wanted` of a step that is drawn, resumes it and compares it with the first
        run. spent: seconds of a phase of one step in the first run. SystemExit where the run is over too soon ATTEMPTS
        times."""
        every = {"eval": EVAL_EVERY, "save": SAVE_EVERY}.get(wanted, 1)
        step = rng.choice([s for s in range(1, self.steps + 1) if s % every == 0 or s == self.steps])
        for attempt in range(ATTEMPTS):
            project = f"killed-{number}-{attempt}"
            process = self.start(project)
            self._wait_for(project, process, step, wanted)
            time.sleep(rng.random() * spent[wanted])
            self._kill_all(project, process)
            if process.returncode != 0:  # it was not over before
                break
        else:
            raise SystemExit(f"run {number} was over {ATTEMPTS} times before its {wanted} of step {step} was killed")
        sign = heartbeat.read(self.folder / project)[0]
        newest = max((self.folder / project / "ckpt").glob("step-*"), default=Path("step-0"))
        before = len(self._log(project).read_bytes())
        self.finish(project)
        said = self._log(project).read_bytes()[before:].decode()
        return Kill(
            wanted,
            sign["phase"],
            sign["step"],
            sign["step"] - int(newest.name.removeprefix("step-")),
            said.count("are those that the interrupted run left"),
            difference(self.folder / "straight", self.folder / project),
        )

    def _wait_for(self, project: str, process: subprocess.Popen[bytes], step: int, phase: str) -> None:
        """Until the run is in this phase of this step, or beyond that step."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            sign = heartbeat.read(self.folder / project).get(0, {"step": 0, "phase": ""})
            if sign["step"] > step or (sign["step"] == step and sign["phase"].startswith(phase)):
                return
            time.sleep(0.001)
        if process.returncode != 0:
            raise SystemExit(f"{project} failed; what it printed is in {self._log(project)}")

    def _kill_all(self, project: str, process: subprocess.Popen[bytes]) -> None:
        """The ranks, which have groups of their own where a launcher started them, and the launcher."""
        ranks = {int(sign["pid"]) for sign in heartbeat.read(self.folder / project).values()}
        for pid in sorted({process.pid, *ranks}):
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()

    def _log(self, project: str) -> Path:
        return self.folder / f"{project}.log"

    def spent(self) -> dict[str, float]:
        """Mean seconds of each phase of a step in the first run, of the steps that have it."""
        rows = read_rows(self.folder / "straight" / "metrics.jsonl")
        found = {}
        for phase in PHASES:
            seconds = [row[name] for row in rows if (name := f"time/{phase}_seconds") in row]
            found[phase] = sum(seconds) / len(seconds)
        return found


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_clock(value: Any) -> Any:
    """`value` without what a clock measures."""
    if isinstance(value, dict):
        kept = (k for k in value if k != "seconds" and not k.startswith("time/") and "per_second" not in k)
        return {k: without_clock(value[k]) for k in kept}
    return [without_clock(inner) for inner in value] if isinstance(value, list) else value


def difference(one: Path, other: Path) -> str:
    """The first thing of two runs that is not equal; empty when all is."""
    for name in ("metrics.jsonl", "rollouts.jsonl", "graded.jsonl"):
        if without_clock(read_rows(one / name)) != without_clock(read_rows(other / name)):
            return name
    evaluations = [json.loads((run / "evaluations.json").read_text()) for run in (one, other)]
    if without_clock(evaluations[0]) != without_clock(evaluations[1]):
        return "evaluations.json"
    newest = [(run / "ckpt" / "optimized").resolve() for run in (one, other)]
    for path in sorted(newest[0].glob("*.safetensors")):
        if path.read_bytes() != (newest[1] / path.name).read_bytes():
            return path.name
    states = [torch.load(path / "trainer" / "state.pt", weights_only=True) for path in newest]
    return "" if equal(*(state | {"seconds": 0.0} for state in states)) else "trainer/state.pt"


def equal(one: Any, other: Any) -> bool:
    """The same bits, tensors in dicts and lists included."""
    if torch.is_tensor(one):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1, help="processes of each run (default 1)")
    parser.add_argument("--steps", type=int, default=6, help="RL steps of a run (default 6)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--output", type=Path, help="folder to keep the runs in, new or empty (default: none is kept)")
    return parser.parse_args()


def report(kills: Sequence[Kill], seconds: float) -> None:
    hit = Counter(kill.hit.split()[0] for kill in kills)
    figures = {
        "benchmark": "kill",
        "kills": len(kills),
        "equal": sum(not kill.differs for kill in kills),
        "hit": dict(hit),
        "redone": sum(kill.redone for kill in kills),
        "from_disk": sum(kill.from_disk for kill in kills),
        "seconds": round(seconds),
    }
    print(json.dumps(figures))


def main() -> None:
    args = arguments()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(args.output.resolve() if args.output else Path(temporary) / "kill", args.steps, args.processes)
        bench.finish("straight")
        spent, rng = bench.spent(), random.Random(args.seed)
        offset = rng.randrange(len(PHASES))
        print(f"{'kill':>4}  {'aimed at':10}{'hit':24}{'step':>5}{'redone':>8}{'from disk':>11}  equal", flush=True)
        kills = []
        for number in range(1, args.kills + 1):
            kill = bench.kill(number, PHASES[(number + offset) % len(PHASES)], rng, spent)
            kills.append(kill)
            same = "yes" if not kill.differs else f"no: {kill.differs}"
            print(
                f"{number:>4}  {kill.wanted:10}{kill.hit:24}{kill.step:>5}{kill.redone:>8}{kill.from_disk:>11}  {same}",
                flush=True,
            )
        report(kills, time.perf_counter() - started)
    if any(kill.differs for kill in kills):
        sys.exit(1)


if __name__ == "__main__":
    main()
