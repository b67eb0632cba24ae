"""What methods, objectives, advantages and sizes of a block change on the built-in tasks, in stages.

    python benchmarks/study.py stage1 [--tasks sort addition] [--variants trace coupled ...] [--seeds 1 2]
    python benchmarks/study.py stage2 [--tasks ...]
    python benchmarks/study.py blocks [--tasks ...]
    python benchmarks/study.py edits [--seeds 1 2 3]
    python benchmarks/study.py report

Each run is `rl.py config=configs/RECIPE.yaml ...` in a process of its own with one thread, fp32, one after another. All
runs of a task, seed and size of a block begin with the same SFT model. A step is several updates, as the recipe has it:
after the first the policy has moved, so objectives can differ.

stage1: every variant, seeds 1 and 2, cut to steps that take TraceRL at most 90 s. It chooses, and shows nothing.
stage2: TraceRL and the five variants that stage 1 puts first, on six new seeds, at about equal packed tokens: a variant
whose responses make fewer of them is asked more questions a step, by stage 1's figures. Differences are paired by the
seed and come from stage 2 alone; p is corrected for the number of comparisons of a task (Holm).
blocks: TraceRL and LightningRL's additions in blocks of 4, 8, 16 and 32, each from a model trained at that size.
edits: TraceRL and EBPO with edits, TraceRL without, three seeds, at about equal packed tokens.

Compute is counted in packed tokens trained (`packed_tokens` in metrics.jsonl), the tokens that the policy's forward and
backward passes run over, and in CPU seconds of the whole RL run. A finished run is a line of --results and is never run
again; an interrupted one is resumed. Accuracy is that of sampled responses to the test questions, 8 each (brackets: 4).
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.study_steps.runs import Result, Run, Runner
from benchmarks.study_steps.tables import core_hours, of_blocks, of_stage1, of_stage2
from benchmarks.study_steps.variants import BASE, EDIT_VARIANTS, TASKS, VARIANTS

FIRST_SEEDS, NEW_SEEDS = (1, 2), (3, 4, 5, 6, 7, 8)
EDIT_SEEDS = (1, 2, 3)
FINALISTS = 5
BLOCK_VARIANTS = (BASE, "lightning")
Found = Mapping[Run, Result]


def variants_of(task: str) -> list[str]:
    """The variants that can run on a task."""
    if TASKS[task].edits:
        return list(EDIT_VARIANTS)
    of_all = {name: variant for name, variant in VARIANTS.items() if variant.edit_questions is None}
    return [name for name, variant in of_all.items() if TASKS[task].blocks or not variant.blocks_only]


def stage1(task: str, variants: Iterable[str], seeds: Iterable[int], steps: int) -> Iterator[Run]:
    """Seed by seed, so that what is there after an interruption compares variants."""
    chosen = set(variants)
    for seed in seeds:
        for name in variants_of(task):
            if name in chosen:
                yield Run(task, name, seed, TASKS[task].block_size, steps, TASKS[task].questions)


def stage2(task: str, found: Found, steps: int) -> Iterator[Run]:
    """What stage 1 leads to; a variant with TraceRL's own figures there (`rank` where rewards are 0 and 1) is not run
    again. ValueError where stage 1 has not been run."""
    first = {name: runs for name, runs in _stage1_of(task, found, steps).items() if len(runs) == len(FIRST_SEEDS)}
    if BASE not in first or len(first) < 2:
        raise ValueError(f"stage 2 of {task} needs stage 1: python benchmarks/study.py stage1 --tasks {task}")
    same = {name for name, runs in first.items() if list(map(_figures, runs)) == list(map(_figures, first[BASE]))}
    gain = {name: statistics.mean(run.accuracy for run in runs) for name, runs in first.items() if name not in same}
    tokens = {name: statistics.mean(run.packed_tokens for run in runs) for name, runs in first.items()}
    for seed in NEW_SEEDS:
        for name in (BASE, *sorted(gain, key=gain.__getitem__, reverse=True)[:FINALISTS]):
            questions = round(TASKS[task].questions * tokens[BASE] / max(1.0, tokens[name]))
            yield Run(task, name, seed, TASKS[task].block_size, steps, max(1, questions))


def blocks(task: str, seeds: Iterable[int], steps: int) -> Iterator[Run]:
    for seed in seeds:
        for size in TASKS[task].blocks:
            for name in BLOCK_VARIANTS:
                yield Run(task, name, seed, size, steps, TASKS[task].questions)


def edits(task: str, variants: Iterable[str], seeds: Iterable[int], steps: int) -> Iterator[Run]:
    chosen = set(variants)
    for seed in seeds:
        for name in variants_of(task):
            if name in chosen:
                questions = VARIANTS[name].edit_questions or TASKS[task].questions
                yield Run(task, name, seed, TASKS[task].block_size, steps, questions)


def _stage1_of(task: str, found: Found, steps: int) -> dict[str, list[Result]]:
    """The results of stage 1 by variant."""
    size, by_variant = TASKS[task].block_size, dict[str, list[Result]]()
    for run, result in found.items():
        alike = (run.task, run.block_size, run.steps, run.questions) == (task, size, steps, TASKS[task].questions)
        if alike and run.seed in FIRST_SEEDS:
            by_variant.setdefault(run.variant, []).append(result)
    return {name: sorted(runs, key=lambda result: result.run.seed) for name, runs in by_variant.items()}


def _figures(result: Result) -> tuple[float, ...]:
    return result.accuracy, result.speed, result.updates, result.packed_tokens


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("stage1", "stage2", "blocks", "edits", "report"))
    usual = [name for name, task in TASKS.items() if not task.edits]
    parser.add_argument("--tasks", nargs="+", choices=usual, default=usual, help="not of edits")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="of stage 1 and edits")
    parser.add_argument("--seeds", type=int, nargs="+", choices=EDIT_SEEDS, help="not of stage 2; 3 is of edits alone")
    parser.add_argument("--steps", type=int, help="RL steps of a run; default the task's")
    parser.add_argument("--output", type=Path, default=Path("runs/study"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("study.jsonl"))
    args = parser.parse_args()
    if args.stage in ("stage1", "blocks") and not set(args.seeds or ()) <= set(FIRST_SEEDS):
        parser.error(f"--seeds {args.seeds}: {args.stage} has seeds {FIRST_SEEDS}.")
    of_edits = [name for name, task in TASKS.items() if task.edits]
    args.tasks = of_edits if args.stage == "edits" else args.tasks + of_edits * (args.stage == "report")
    args.seeds = args.seeds or (EDIT_SEEDS if args.stage == "edits" else FIRST_SEEDS)
    return args


def plan(stage: str, task: str, args: argparse.Namespace, found: Found) -> Iterable[Run]:
    """The runs of a stage on a task; none for a report."""
    steps = args.steps or TASKS[task].steps
    if stage == "stage1":
        return stage1(task, args.variants, args.seeds, steps)
    if stage == "stage2":
        return stage2(task, found, steps)
    if stage == "edits":
        return edits(task, args.variants, args.seeds, steps)
    return blocks(task, args.seeds, steps) if stage == "blocks" else ()


def main() -> None:
    args = arguments()
    runner = Runner(args.output.resolve(), args.results.resolve())
    for task in args.tasks:
        for run in plan(args.stage, task, args, runner.found):
            result = runner.run(run)
            print(f"{run.name:44} {result.before:.3f} -> {result.accuracy:.3f}", flush=True)
    for task in args.tasks:
        print("\n".join(report(task, runner.found, args.steps or TASKS[task].steps)))
    done = list(runner.found.values())
    print(json.dumps({"benchmark": "study", "runs": len(done), "core_hours": round(core_hours(done), 2)}))


def report(task: str, found: Found, steps: int) -> Iterator[str]:
    """What has been run of a task, a table a stage; differences are to TraceRL's run of the same seed."""
    here = [result for run, result in found.items() if run.task == task and run.steps == steps]
    if TASKS[task].edits:
        planned = set(edits(task, VARIANTS, EDIT_SEEDS, steps))
        if here := [result for result in here if result.run in planned]:
            yield f"\n{task}, {steps} steps, {core_hours(here):.2f} core-hours\n"
            yield from of_stage2(here)
        return
    usual = [result for result in here if result.run.block_size == TASKS[task].block_size]
    alike = [result for result in here if result.run.questions == TASKS[task].questions]
    sized = [result for result in alike if result.run.variant in BLOCK_VARIANTS]
    stages = {
        "stage 1": (of_stage1, [result for result in usual if result.run.seed in FIRST_SEEDS]),
        "stage 2": (of_stage2, [result for result in usual if result.run.seed in NEW_SEEDS]),
        "blocks": (of_blocks, [result for result in sized if result.run.seed in FIRST_SEEDS]),
    }
    for stage, (table, results) in stages.items():
        if results and (stage != "blocks" or len({result.run.block_size for result in results}) > 1):
            yield f"\n{task}, {stage}, {steps} steps, {core_hours(results):.2f} core-hours\n"
            yield from table(results)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        raise SystemExit(str(error)) from None
