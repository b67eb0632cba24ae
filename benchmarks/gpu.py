"""What this project does on a GPU: right or not, and how fast against the card's own ceilings, in one command.

    python benchmarks/gpu.py [--out runs/gpu] [--only captures,sampler_8b] [--deadline 900] [--rehearse]

Each step runs in a process of its own, which is killed at its limit, so that a crash or a hang costs one step; a step
that no longer fits before the deadline is left out. DIR/gpu.json is written after every step and holds what earlier
calls with the same --out have measured, so that `--only` measures again what failed. The table at the end, predicted
against measured with what was not measured, is also in DIR/results.md and, of a real run, appended to
benchmarks/RESULTS.md.

Models are random and of the sizes of SDAR's. Steps have two denoising steps a block of 4 tokens at a context of 2,048
unless said otherwise; `roofline` is the share of the fastest step that this card's own copies and products, measured in
the same run, would allow. --rehearse runs every step at the smallest sizes on a CPU: nothing it prints is a result.
"""

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # looking for GPUs must not start CUDA before a fork

import torch
import transformers

from benchmarks.gpu_steps import correct, machine, sampling, updates
from benchmarks.gpu_steps.record import Setup, Step

ROOT = Path(__file__).resolve().parents[1]
STEPS: dict[str, Step] = {
    step.name: step
    for step in (machine.STEPS[0], *correct.STEPS, machine.STEPS[1], *sampling.STEPS, machine.STEPS[2], *updates.STEPS)
}
PATIENCE = 1.6
"""A step is killed after so many times the seconds that it is expected to take."""


@dataclass
class Found:
    """What a step left: values and remarks by the name of a figure; state: "done", or why it is not; card: its name."""

    values: dict[str, float] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    state: str = "not asked for"
    seconds: float = 0.0
    card: str = ""


def _work(step: Step, setup: Setup, results: Connection) -> None:
    """In the step's own process: figures as they come, then how it ended."""
    if setup.tiny:
        torch.set_num_threads(1)
    try:
        results.send(torch.cuda.get_device_name() if setup.device.type == "cuda" else "CPU, a rehearsal")
        for figure in step.run(setup):
            results.send(figure)
        results.send("done")
    except Exception as error:
        traceback.print_exc()
        results.send(f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    results.close()


def run_step(step: Step, setup: Setup, limit_seconds: float) -> Found:
    """The step in a process of its own, forked so that nothing is imported again."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(step, setup, sender))
    start = time.monotonic()
    process.start()
    sender.close()
    found, messages = Found(state=f"stopped after {limit_seconds:.0f} s"), []
    try:
        while receiver.poll(max(0.0, start + limit_seconds - time.monotonic())):
            messages.append(receiver.recv())
    except EOFError:
        process.join()
        found.state = f"its process died (status {process.exitcode})"
    process.kill()
    process.join()
    for message in messages:
        if isinstance(message, str):
            found.card, found.state = (found.card, message) if found.card else (message, found.state)
            continue
        name, value, *remark = message
        found.values[name] = value
        if remark:
            found.remarks[name] = remark[0]
    found.seconds = time.monotonic() - start
    return found


def versions() -> dict[str, str]:
    """Of what the figures depend on; empty where it is absent."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    try:
        import triton

        triton_version = str(triton.__version__)
    except ImportError:
        triton_version = ""
    return {
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "transformers": transformers.__version__,
        "triton": triton_version,
    }


def rows(found: Mapping[str, Found]) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Lines of the table: step, figure with its unit, predicted, wanted, measured, remark."""
    for step in STEPS.values():
        for figure in step.figures:
            value = found[step.name].values.get(figure.name)
            if value is None:
                continue
            remark = found[step.name].remarks.get(figure.name, "")
            if figure.missed_by(value):
                remark = f"missed{', ' if remark else ''}{remark}"
            yield step.name, f"{figure.name} ({figure.unit})", figure.predicted, figure.wanted, f"{value:.4g}", remark


def not_measured(found: Mapping[str, Found]) -> Iterator[str]:
    """A sentence for each step that lacks figures."""
    for step in STEPS.values():
        missing = [figure.name for figure in step.figures if figure.name not in found[step.name].values]
        if missing:
            state = found[step.name].state
            why = "no room or no kernel for it here" if state == "done" else state
            yield f"Not measured in {step.name} ({why}): {', '.join(missing)}."


def results_page(found: Mapping[str, Found], facts: Mapping[str, Any]) -> str:
    """The section of benchmarks/RESULTS.md."""
    known = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    lines = [f"## On a GPU, {facts['date']}", "", f"`{facts['command']}` on {facts['card']}: {known}.", ""]
    lines += ["| step | figure | predicted | wanted | measured | |", "|---|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(found)]
    return "\n".join([*lines, "", *not_measured(found)]) + "\n"


def write(out: Path, found: Mapping[str, Found], arguments: Sequence[str]) -> dict[str, Any]:
    """DIR/gpu.json and DIR/results.md; returns what stands around the figures."""
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python benchmarks/gpu.py", *arguments]),
        "card": next((step.card for step in found.values() if step.card), "no card"),
        "versions": versions(),
    }
    (out / "results.md").write_text(results_page(found, facts))
    content = facts | {"steps": {name: vars(step) for name, step in found.items()}}
    (out / "gpu.json.new").write_text(json.dumps(content, indent=1) + "\n")
    (out / "gpu.json.new").replace(out / "gpu.json")
    return facts


def earlier(out: Path) -> dict[str, Found]:
    """What gpu.json has of earlier calls. ValueError where it cannot be read."""
    found = {name: Found() for name in STEPS}
    if (out / "gpu.json").is_file():
        try:
            kept = json.loads((out / "gpu.json").read_text())["steps"]
            found |= {name: Found(**values) for name, values in kept.items() if name in STEPS}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{out / 'gpu.json'} cannot be read ({error!r}): give another --out.") from error
    return found


def run(args: argparse.Namespace, names: Sequence[str], arguments: Sequence[str]) -> dict[str, Found]:
    """The steps, one after another, each recorded before the next begins."""
    begun = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    found, device = earlier(args.out), torch.device("cpu" if args.rehearse else "cuda")
    if "machine" not in names and not found["machine"].values:
        names = ["machine", *names]
    for name in names:
        step, left = STEPS[name], args.deadline - (time.monotonic() - begun)
        if left < (1.0 if args.rehearse else step.seconds):
            found[name].state = f"no time: {left:.0f} s were left before --deadline"
        else:
            setup = Setup(device, args.rehearse, found["machine"].values)
            found[name] = run_step(step, setup, min(left, PATIENCE * step.seconds))
        state = found[name]
        print(f"{name:14} {state.seconds:6.1f} s  {len(state.values)} figures, {state.state}", flush=True)
        write(args.out, found, arguments)
    return found


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and the names of the steps to run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", metavar="DIR", help="default runs/gpu")
    parser.add_argument("--only", default=",".join(STEPS), help="names of steps, separated by commas (default: all)")
    parser.add_argument("--deadline", type=float, default=900.0, help="seconds for all steps (default 900)")
    parser.add_argument("--rehearse", action="store_true", help="every step tiny, on a CPU: nothing is a result")
    args = parser.parse_args(arguments)
    names = args.only.split(",")
    if unknown := [name for name in names if name not in STEPS]:
        parser.error(f"--only: no step is named {unknown[0]!r}; there are {', '.join(STEPS)}")
    if not args.rehearse and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --rehearse runs every step tiny on a CPU")
    return args, names


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> None:
    args, names = parse(arguments)
    try:
        found = run(args, names, arguments)
    except ValueError as error:
        sys.exit(f"gpu.py: {error}")
    print(f"\n{'figure':48}{'predicted':>32}{'wanted':>10}{'measured':>12}")
    for _, figure, predicted, wanted, measured, remark in rows(found):
        print(f"{figure:48}{predicted:>32}{wanted:>10}{measured:>12}  {remark}")
    print("\n".join(not_measured(found)))
    if not args.rehearse:
        with (ROOT / "benchmarks" / "RESULTS.md").open("a") as file:
            file.write("\n" + (args.out / "results.md").read_text())
    figures = {name: value for step in found.values() for name, value in step.values.items()}
    failed = [name for name in names if found[name].state != "done"]
    print(json.dumps({"benchmark": "gpu", "rehearsal": args.rehearse, "failed": failed, **figures}))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
