"""Run folders that are damaged file by file and run again: does damage pass unnoticed, or end in a traceback?

    python benchmarks/damage.py [--kinds rl lora value sft] [--flips 2] [--seed 1] [--only NAME] [--output FOLDER]

A run of each kind (benchmarks/tiny_runs.py) goes through; another one dies in the updates of a step, right after the
step of a checkpoint, and leaves an older checkpoint, logs, and (RL) the step's rollouts. Of what it leaves, each file
is damaged in a copy: one bit of a byte flipped (`--flips` times, at places that the seed draws), the file cut to half,
its second half zeroed, all of it zeroed. The same command is then typed again in a process forked from this one.

    equal     it ended as the run that nothing stopped (benchmarks/kill.py has what that means)
    named     it ended otherwise, or was refused with exit status 2, and a line has the file's path: whole, or that of
              its checkpoint and then its path in there
    silent    it ended otherwise, and no line has it
    unnamed   it was refused, and no line has it
    traceback it printed one, or ended with another exit status

Exit status 1 where a case is silent, unnamed or a traceback. Ends with one line of JSON.
"""

import argparse
import json
import os
import random
import re
import runpy
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train.command  # noqa: F401  imported once, before the forks
import train.rl  # noqa: F401
from benchmarks.tiny_runs import KINDS, ROOT, Workspace, difference

STEPS, DIES_IN = 6, 5
OUTSIDE = ("heartbeat", ".lock")
"""What a run makes anew when it is opened, or what only names who holds it."""


@dataclass(frozen=True)
class Damage:
    """A file of the run, by its path in the folder, and what was done to it."""

    name: str
    how: str
    change: Callable[[bytes], bytes]


def damages(run: Path, flips: int, rng: random.Random) -> Iterator[Damage]:
    """Every file of a run's folder in every way; links are no files of their own."""
    for path in sorted(run.rglob("*")):
        name, size = str(path.relative_to(run)), path.stat().st_size
        through_a_link = any(parent.is_symlink() for parent in (path, *path.parents) if parent != run)
        if not path.is_file() or through_a_link or name.startswith(OUTSIDE) or not size:
            continue
        for _ in range(flips):
            place, bit = rng.randrange(size), 1 << rng.randrange(8)
            yield Damage(name, f"bit of byte {place}", partial(flipped, place=place, bit=bit))
        yield Damage(name, "cut to half", lambda content: content[: len(content) // 2])
        yield Damage(
            name, "second half zeroed", lambda content: content[: len(content) // 2].ljust(len(content), b"\0")
        )
        yield Damage(name, "zeroed", lambda content: bytes(len(content)))


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def run_command(arguments: list[str], log: Path, dies: bool = False) -> int:
    """Runs a command in a forked process; its exit status. dies: in the updates of step DIES_IN."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ |= {"OMP_NUM_THREADS": "1"}
        os.chdir(ROOT)
        warnings.resetwarnings()
        if dies:
            die_in_updates()
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        os._exit(status)


def die_in_updates() -> None:
    """This process ends where the updates of step DIES_IN, or of that update of fine-tuning, begin."""
    from train.learner.policy import Policy
    from train.sft import FineTuning

    for trainer, method in ((Policy, "train"), (FineTuning, "update")):
        setattr(trainer, method, _dying(getattr(trainer, method)))


def _dying(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose second argument is the step."""

    def dies(self: Any, what: Any, step: int, *more: Any) -> Any:
        if step == DIES_IN:
            os._exit(9)
        return method(self, what, step, *more)

    return dies


def names_file(printed: str, run: Path, name: str) -> bool:
    """Whether a line has the whole path of a run's file, or that of its checkpoint and then the file's path in it."""
    parts = Path(name).parts
    checkpoint, inner = (run / Path(*parts[:2]), "/".join(parts[2:])) if parts[0] == "ckpt" else (run / name, "")
    in_checkpoint = re.compile(rf"{re.escape(str(checkpoint))}\b.*[\s(]{re.escape(inner)}(?![\w./-])")
    lines = printed.splitlines()
    return any(str(run / name) in line or (inner != "" and in_checkpoint.search(line) is not None) for line in lines)


def outcome(status: int, printed: str, named: bool, differs: str) -> str:
    """The case's class; named: `names_file`."""
    if "Traceback" in printed or status not in (0, 2):
        return "traceback"
    if status == 2:
        return "named" if named else "unnamed"
    if not differs:
        return "equal"
    return "named" if named else "silent"


def cases_of(workspace: Workspace, kind: str, args: argparse.Namespace) -> Iterator[str]:
    """The outcome of every case of one kind; what is not equal is printed."""
    folder = workspace.folder
    whole, left = folder / f"{kind}-straight", folder / f"{kind}-left"
    log = folder / "log"
    for project, dies in ((whole.name, False), (left.name, True)):
        if run_command(workspace.command(kind, project), log, dies) != (9 if dies else 0):
            raise SystemExit(f"{project} failed:\n{log.read_text()}")
    (kept := folder / f"{kind}-kept").mkdir()
    shutil.copytree(left, kept / "run", symlinks=True)
    rng = random.Random(args.seed)
    for damage in damages(kept / "run", args.flips, rng):
        if args.only and args.only not in damage.name:
            continue
        shutil.rmtree(left)
        shutil.copytree(kept / "run", left, symlinks=True)
        path = left / damage.name
        path.write_bytes(damage.change(path.read_bytes()))
        status = run_command(workspace.command(kind, left.name), log)
        printed = log.read_text(errors="replace")
        named = names_file(printed, left, damage.name)
        found = outcome(status, printed, named, difference(whole, left) if status == 0 else "")
        if found not in ("equal", "named") or args.only:
            print(f"{kind:>6}  {damage.name:44} {damage.how:22} {found}", flush=True)
            for line in printed.splitlines()[-4:] if found != "equal" else ():
                print(f"        {line}", flush=True)
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=["rl", "lora", "value", "sft"])
    parser.add_argument("--flips", type=int, default=2, help="bits of each file that are flipped, one at a time")
    parser.add_argument("--seed", type=int, default=1, help="of the places")
    parser.add_argument("--only", default="", help="files whose path has this text; every case is printed")
    parser.add_argument("--output", type=Path, help="folder to keep the runs in, new or empty (default: none is kept)")
    args = parser.parse_args()
    started, counts = time.perf_counter(), Counter[str]()
    with tempfile.TemporaryDirectory() as temporary:
        workspace = Workspace((args.output.resolve() if args.output else Path(temporary)) / "damage", STEPS)
        for kind in args.kinds:
            of_kind = Counter(cases_of(workspace, kind, args))
            print(f"{kind:>6}  {dict(of_kind)}", flush=True)
            counts += of_kind
    names = ("equal", "named", "silent", "unnamed", "traceback")
    found = {"cases": counts.total(), **{name: counts[name] for name in names}}
    print(json.dumps({"benchmark": "damage", **found, "seconds": round(time.perf_counter() - started)}))
    if found["silent"] or found["unnamed"] or found["traceback"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
