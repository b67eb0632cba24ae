"""Runs that are killed at random moments and typed again, against one that never was: the same bits in the end?

    python benchmarks/kill.py [--kills 20] [--kind rl | --all] [--steps 6] [--seed 1] [--output FOLDER]

Kinds (benchmarks/tiny_runs.py): `rl`, `lora`, `value` (with a value model), `sft`, `eval`, and `ranks` (RL on two
processes). A checkpoint is written every second step, or update of SFT, and an evaluation every third.
The first run of a kind goes through. Each of the others begins anew, is killed (SIGKILL to the process group of every
process) in a phase and a step that the seed draws, after a share of the time that the first run spent there, and is
then typed again. The moments are taken from the run's own signs of life (heartbeat/); what the last sign said when the
run was dead is the phase that was hit.

"redone" counts the steps after the newest checkpoint that had begun, "from disk" those of them whose rollouts and
rewards were not made again. "equal" asks for the same bits: final weights, optimizer state, every line of
metrics.jsonl, graded.jsonl, evaluations.json, samples.jsonl and results.json (what a clock measures aside) and of
rollouts.jsonl. Exit status 1 where a run is not equal. Ends with one line of JSON.
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
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.tiny_runs import KINDS, ROOT, Workspace, difference
from runtime import heartbeat
from runtime.steps import step_folders, step_of

PATIENCE_SECONDS = 300.0
POLL_SECONDS = 0.001
ATTEMPTS = 10

Spent = Mapping[str, Mapping[int, float]]
"""Phase -> step -> seconds of the first run in it."""


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
    """The runs of one kind, in a folder of their own."""

    def __init__(self, folder: Path, kind: str, steps: int):
        self.workspace, self.kind = Workspace(folder, steps), kind
        self.folder = folder

    def start(self, project: str) -> subprocess.Popen[bytes]:
        """A run of this name, new or resumed; what it prints is added to a file."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with self._log(project).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *self.workspace.command(self.kind, project)],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def straight(self) -> Spent:
        """The first run. SystemExit where it fails."""
        process, spent = self.start("straight"), defaultdict[str, dict[int, float]](dict)
        deadline = seen = time.monotonic()
        deadline += PATIENCE_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            sign, now = self._sign("straight"), time.monotonic()
            of_step = spent[sign["phase"].partition(" ")[0]]
            of_step[sign["step"]] = of_step.get(sign["step"], 0.0) + now - seen
            seen = now
            time.sleep(POLL_SECONDS)
        self._require_end("straight", process)
        return {phase: spent[phase] for phase in KINDS[self.kind].phases if spent[phase]}

    def kill(self, number: int, wanted: str, rng: random.Random, spent: Spent) -> Kill:
        """Kills run `number` in the phase `wanted` of a step that is drawn, resumes it and compares it with the first
        run. SystemExit where the run is over too soon ATTEMPTS times."""
        step = rng.choice(sorted(spent[wanted]))
        for attempt in range(ATTEMPTS):
            project = f"killed-{number}-{attempt}"
            process = self.start(project)
            self._wait_for(project, process, step, wanted)
            time.sleep(rng.random() * spent[wanted][step])
            self._kill_all(project, process)
            if process.returncode != 0 and self._sign(project)["phase"] != "done":
                break
        else:
            raise SystemExit(f"run {number} was over {ATTEMPTS} times before its {wanted} of step {step} was killed")
        sign, run = self._sign(project), self.folder / project
        newest = max((step_of(path) or 0 for path in step_folders(run / "ckpt")), default=0)
        before = len(self._log(project).read_bytes())
        self._require_end(project, self.start(project))
        printed = self._log(project).read_bytes()[before:].decode()
        return Kill(
            wanted,
            sign["phase"],
            sign["step"],
            max(0, sign["step"] - newest),
            printed.count("are those that the interrupted run left"),
            difference(self.folder / "straight", run),
        )

    def _sign(self, project: str) -> dict:
        return heartbeat.read(self.folder / project).get(0, {"step": -1, "phase": ""})

    def _require_end(self, project: str, process: subprocess.Popen[bytes]) -> None:
        if process.wait(PATIENCE_SECONDS) != 0:
            raise SystemExit(f"{project} failed; what it printed is in {self._log(project)}")

    def _wait_for(self, project: str, process: subprocess.Popen[bytes], step: int, phase: str) -> None:
        """Until the run is in this phase of this step, or beyond that step."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            sign = self._sign(project)
            if sign["step"] > step or (sign["step"] == step and sign["phase"].startswith(phase)):
                return
            time.sleep(POLL_SECONDS)
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


def killed(bench: Bench, kills: int, seed: int) -> list[Kill]:
    """The kills of one kind, each printed as a row."""
    spent, rng = bench.straight(), random.Random(seed)
    phases = list(spent)
    offset = rng.randrange(len(phases))
    print(f"{bench.kind:>6}  {'aimed at':10}{'hit':24}{'step':>5}{'redone':>8}{'from disk':>11}  equal", flush=True)
    found = []
    for number in range(1, kills + 1):
        kill = bench.kill(number, phases[(number + offset) % len(phases)], rng, spent)
        found.append(kill)
        same = "yes" if not kill.differs else f"no: {kill.differs}"
        print(
            f"{number:>6}  {kill.wanted:10}{kill.hit:24}{kill.step:>5}{kill.redone:>8}{kill.from_disk:>11}  {same}",
            flush=True,
        )
    return found


def figures(kills: Sequence[Kill]) -> dict:
    return {
        "kills": len(kills),
        "equal": sum(not kill.differs for kill in kills),
        "hit": dict(Counter(kill.hit.partition(" ")[0] for kill in kills)),
        "redone": sum(kill.redone for kill in kills),
        "from_disk": sum(kill.from_disk for kill in kills),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each kind (default 20)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--kind", choices=list(KINDS), default="rl")
    which.add_argument("--all", action="store_true", help="every kind, one after the other")
    parser.add_argument("--steps", type=int, default=6, help="of RL (default 6); SFT: twice as many updates")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--output", type=Path, help="folder to keep the runs in, new or empty (default: none is kept)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    started = time.perf_counter()
    by_kind: dict[str, list[Kill]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output.resolve() if args.output else Path(temporary)
        for kind in KINDS if args.all else [args.kind]:
            by_kind[kind] = killed(Bench(folder / kind, kind, args.steps), args.kills, args.seed)
    every = [kill for kills in by_kind.values() for kill in kills]
    kinds = {"kinds": {kind: figures(kills) for kind, kills in by_kind.items()}} if args.all else {}
    seconds = round(time.perf_counter() - started)
    print(json.dumps({"benchmark": "kill", **figures(every), **kinds, "seconds": seconds}))
    if any(kill.differs for kill in every):
        sys.exit(1)


if __name__ == "__main__":
    main()
