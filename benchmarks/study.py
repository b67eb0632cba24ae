"""What methods, value model, shrink, KL, adapters and larger blocks change on the tiny task: RL runs over seeds, read
into one table.

    python benchmarks/study.py [--seeds 1 2 3] [--steps 50] [--variants trace coupled ...] [--output runs/study]

Each run is `rl.py config=configs/rl_tiny.yaml ...` in a process of its own with one thread, fp32, one after another;
all runs of a seed begin with that seed's SFT model. A step is 32 questions x 8 answers and exactly one update, so runs
of as many steps have as many updates, and every update is on policy. Accuracy is that of sampled answers to the 256
test questions, 8 each, after the last step. Compute is counted in packed tokens trained (`packed_tokens` in
metrics.jsonl): the tokens that the policy's forward and backward passes run over. Not in it: sampling, the forward pass
without gradients that random masks and shrink need for the old log-probabilities, the reference model's, and the value
model's training, which runs over the same tokens again. A pair of coupled masks, or two random ones, of an answer take
about the tokens that its denoising steps take under TraceRL; what a run trains also depends on how many groups have
something to teach, so "random2_q35", "_q36" and "_q40" draw more questions a step. The table says what the compute was.

"block8" takes the same model, trained in blocks of 4, through a short SFT on the same examples to blocks of 8, and is
sampled, trained and evaluated at 8; its "before" is after that SFT.

Finished runs are read from their folders and not run again; an interrupted one is resumed. Two calls with different
`--seeds` may run side by side; a last call with all seeds prints the table. Ends with one line of JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
COMMON = (
    "experiment.eval_first=false",
    "experiment.keep_last=1",
    "rollout.num_task_per_step=32",
    "training.batch_size_lm=65536",
    "optimizer.params.learning_rate=2.0e-4",
    "lr_scheduler.params.min_lr_scale=0.1",
    "evaluation.num_response_per_task=8",
)


@dataclass(frozen=True)
class Variant:
    """One kind of run; arguments: what it sets besides. Blocks of 8 begin with a short SFT at 8 of the seed's model."""

    name: str
    label: str
    arguments: tuple[str, ...] = ()
    block_size: int = 4


RANDOM, VALUE = "training.method=random_masking", "model.value_base_model=${model.pretrained_model}"
TWO_MASKS = (RANDOM, "training.mask_times_per_sample=2")
SFT_AT_8 = (
    "model.random_init=false",
    "training.block_size=8",
    "training.num_train_epochs=10",
    "optimizer.params.learning_rate=1.0e-3",
    "lr_scheduler.params.warmup_steps=3",
)
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("trace", "TraceRL"),
        Variant("coupled", "coupled, one pair of masks", ("training.method=coupled",)),
        Variant("random", "random masking, one mask", (RANDOM,)),
        Variant("random2", "random masking, two masks", TWO_MASKS),
        *(
            Variant(f"random2_q{n}", f"the same, {n} questions", (*TWO_MASKS, f"rollout.num_task_per_step={n}"))
            for n in (35, 36, 40)
        ),
        Variant("random3", "random masking, three masks", (RANDOM, "training.mask_times_per_sample=3")),
        Variant("value", "TraceRL, value model", (VALUE, "optimizer.params.value_learning_rate=1.0e-3")),
        Variant("shrink", "TraceRL, shrink 2", ("training.shrink=2",)),
        Variant("kl", "TraceRL, KL to the frozen first model", ("training.kl_to=reference", "training.beta=0.1")),
        Variant("lora", "TraceRL, LoRA of rank 16", ("lora.rank=16", "optimizer.params.learning_rate=2.0e-3")),
        Variant("block8", "TraceRL in blocks of 8", ("experiment.eval_first=true",), 8),
    )
}


@dataclass(frozen=True)
class Result:
    """A finished run: accuracy of the last evaluation with its standard error over questions, and what it took.
    start: accuracy of the seed's SFT model in blocks of the run's size, before: that of the model the run began with,
    which is another one in blocks of 8. explained, visible: of a run
    with a value model, its explained variance over the last ten steps, and `visible_errors`."""

    seed: int
    start: float
    before: float
    accuracy: float
    stderr: float
    tokens_per_forward: float
    updates: int
    packed_tokens: int
    update_seconds: float
    explained: float | None
    visible: float | None


def suffix(block_size: int) -> str:
    """What the names of models and evaluations in such blocks end with."""
    return "" if block_size == 4 else f"_block{block_size}"


def blocks_of(size: int, section: str) -> tuple[str, str]:
    """Arguments that set a section's blocks to this size, one step a token at most."""
    return f"{section}.block_size={size}", f"{section}.steps_per_block={size}"


def visible_errors(folder: Path) -> float:
    """Share of the variance of a run's credit (of responses, before a value model), over trained tokens, that goes with
    one bit: whether what the response showed before the token's step was already wrong. Right is what the group's
    rewarded responses hold."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for line in (folder / "rollouts.jsonl").read_text().splitlines():
        rollout = json.loads(line)
        rollout["credit"] = rollout.get("advantage", rollout.get("credit"))
        if rollout["credit"] is not None:
            groups.setdefault((rollout["step"], rollout["task"]), []).append(rollout)
    wrong, credit = [], []
    for group in groups.values():
        model = next(rollout for rollout in group if rollout["reward"] == 1.0)
        right = np.array(model["canvas_ids"][: model["num_response_tokens"]])
        for rollout in group:
            R = rollout["num_response_tokens"]
            ids, step = np.array(rollout["canvas_ids"][:R]), np.array(rollout["canvas_step_map"][:R])
            error = np.arange(R) >= len(right)
            error[: len(right)] |= ids[: len(right)] != right[:R]
            wrong += [bool(error[step < now].any()) for now in step]
            credit += [rollout["credit"]] * R
    visible, given = np.array(wrong), np.array(credit)
    between = sum(part.mean() * (given[part].mean() - given.mean()) ** 2 for part in (visible, ~visible))
    return between / float(given.var())


class Study:
    """Runs of one output folder."""

    def __init__(self, output: Path, steps: int):
        self.output, self.steps = output, steps

    def prepare(self, seed: int, block_size: int = 4) -> Path:
        """The seed's SFT model, in blocks of 8 the one trained further at 8; made if absent."""
        name = f"sft_tiny{suffix(block_size)}-{seed}"
        folder = self.output / name / "ckpt" / "optimized"
        if not (folder / "config.json").is_file():
            arguments: tuple[str, ...] = (f"experiment.project={name}", f"training.seed={seed}", f"dataset.seed={seed}")
            arguments += ("training.num_train_epochs=30",)
            if block_size == 8:
                arguments += (f"model.pretrained_model={self.prepare(seed)}", *SFT_AT_8)
            self._call("train/sft.py", "sft_tiny", arguments, name)
        return folder

    def start(self, seed: int, block_size: int) -> float:
        """Accuracy of the seed's SFT model in blocks of this size; it was trained at 4."""
        name = f"start{suffix(block_size)}-{seed}"
        found = self.output / name / "results.json"
        if not found.is_file():
            arguments = (
                f"experiment.project={name}",
                f"model.pretrained_model={self.prepare(seed)}",
                f"training.seed={seed}",
                "rollout.num_response_per_task=8",
                "rollout.strategy=low_confidence_dynamic",
                *blocks_of(block_size, "rollout"),
            )
            self._call("eval.py", "tiny_eval", arguments, name)
        return next(iter(json.loads(found.read_text()).values()))["accuracy"]

    def run(self, variant: Variant, seed: int) -> Result:
        """The variant's run of this seed, run now unless it is finished."""
        name = f"{variant.name}-{seed}"
        if not self._evaluation(name, self.steps):
            started = time.perf_counter()
            arguments: tuple[str, ...] = (
                f"experiment.project={name}",
                f"experiment.total_step={self.steps}",
                f"experiment.save_every={self.steps}",
                f"experiment.eval_every={self.steps}",
                f"training.seed={seed}",
            )
            arguments += (
                f"model.pretrained_model={self.prepare(seed, variant.block_size)}",
                *blocks_of(variant.block_size, "rollout"),
                *blocks_of(variant.block_size, "evaluation"),
            )
            self._call("rl.py", "rl_tiny", (*COMMON, *arguments, *variant.arguments), name)
            print(f"{name}: {self.steps} steps in {time.perf_counter() - started:.0f} s", flush=True)
        first, evaluation = (self._evaluation(name, step) for step in (0, self.steps))
        lines = (self.output / name / "metrics.jsonl").read_text().splitlines()
        metrics = [row for row in map(json.loads, lines) if "updates" in row]
        explained = [row["value/explained_variance"] for row in metrics if "value/explained_variance" in row][-10:]
        start = self.start(seed, variant.block_size)
        return Result(
            seed,
            start,
            first["accuracy"] if first else start,
            evaluation["accuracy"],
            evaluation["stderr"],
            evaluation["tokens_per_forward"],
            int(sum(row["updates"] for row in metrics)),
            int(sum(row["packed_tokens"] for row in metrics)),
            sum(row["time/update_seconds"] for row in metrics),
            statistics.mean(explained) if explained else None,
            visible_errors(self.output / name) if explained else None,
        )

    def _evaluation(self, name: str, step: int) -> dict[str, float]:
        """The run's evaluation after a step; empty where there is none."""
        path = self.output / name / "evaluations.json"
        found = json.loads(path.read_text()) if path.is_file() else {}
        return next(iter(found.get(str(step), {}).values()), {})

    def _call(self, script: str, recipe: str, arguments: Sequence[str], name: str) -> None:
        """Runs a script of this project; what it prints goes to a file."""
        self.output.mkdir(parents=True, exist_ok=True)
        log = self.output / f"{name}.log"
        always = (f"config=configs/{recipe}.yaml", f"experiment.output_dir={self.output}", "experiment.threads=1")
        command = [sys.executable, script, *always, "training.mixed_precision=no", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with log.open("w") as file:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed; what it printed is in {log}")


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds (0 for one seed)."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=50, help="RL steps of a run (default 50)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--output", type=Path, default=Path("runs/study"), help="folder of the runs")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    study = Study(args.output.resolve(), args.steps)
    results: dict[str, list[Result]] = {}
    for name in args.variants:
        results[name] = [study.run(VARIANTS[name], seed) for seed in args.seeds]
    report(results)


def report(results: dict[str, list[Result]]) -> None:
    """The table; differences are to TraceRL's run of the same seed, with their standard error over seeds."""
    base = {run.seed: run.accuracy for run in results.get("trace", [])}
    columns = ("updates", 9), ("M tokens", 10), ("before", 8), ("accuracy", 10), ("sd", 7), ("against TraceRL", 18)
    print(" " * 40 + "".join(f"{name:>{width}}" for name, width in (*columns, ("tok/fwd", 9))))
    rows: dict[str, dict[str, object]] = {}
    for name, runs in results.items():
        against = {} if name == "trace" else difference(runs, base)
        rows[name] = means(runs) | against | of_value_model(runs)
        before, row = statistics.mean(run.before for run in runs), rows[name]
        gap = f"{against['difference']:+.3f} +- {against['difference_stderr']:.3f}" if against else ""
        print(
            f"{VARIANTS[name].label:40}{row['updates']:9.0f}{row['packed_tokens'] / 1e6:10.3f}{before:8.3f}"  # type: ignore[operator]
            f"{row['accuracy']:10.3f}{row['accuracy_sd']:7.3f}{gap:>18}{row['tokens_per_forward']:9.2f}"
        )
    print(json.dumps({"benchmark": "study", "variants": rows}))


def means(runs: Sequence[Result]) -> dict[str, object]:
    mean, spread = mean_and_spread([run.accuracy for run in runs])
    return {
        "updates": statistics.mean(run.updates for run in runs),
        "packed_tokens": statistics.mean(run.packed_tokens for run in runs),
        "update_seconds": statistics.mean(run.update_seconds for run in runs),
        "start_by_seed": [run.start for run in runs],
        "before_by_seed": [run.before for run in runs],
        "accuracy": mean,
        "accuracy_sd": spread,
        "accuracy_by_seed": [run.accuracy for run in runs],
        "stderr_of_a_run": statistics.mean(run.stderr for run in runs),
        "tokens_per_forward": statistics.mean(run.tokens_per_forward for run in runs),
    }


def difference(runs: Sequence[Result], base: Mapping[int, float]) -> dict[str, object]:
    """To the runs of the same seeds in `base`, {seed: accuracy}; nothing where there are none."""
    gaps = [run.accuracy - base[run.seed] for run in runs if run.seed in base]
    if not gaps:
        return {}
    gap, spread = mean_and_spread(gaps)
    return {"difference": gap, "difference_stderr": spread / len(gaps) ** 0.5}


def of_value_model(runs: Sequence[Result]) -> dict[str, object]:
    if runs[0].explained is None:
        return {}
    return {"explained_variance": [run.explained for run in runs], "visible": [run.visible for run in runs]}


if __name__ == "__main__":
    main()
