"""The graded steps of a run on disk: what a kill in the middle of a step's updates does not cost again."""

import hashlib
import itertools
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.files import append_jsonl, as_jsonl, parsed, read_jsonl, truncate_jsonl
from runtime.run_folder import RunFolder
from sample import Rollout
from sample.rollout import Key
from train.algorithm.advantages import Credit, CreditKind
from train.learner.picture_log import PictureLog

logger = logging.getLogger(__name__)

PROOF = "proof"
_START = re.compile(rb'\{"step": (\d+), ')


@dataclass(frozen=True)
class GradedRollouts:
    """A step's rollouts, prompt-major, with what they earned. reward_stats: counts of the reward's call; seconds: what
    sampling took."""

    rollouts: Sequence[Rollout]
    rewards: Sequence[float | None]
    credit: Credit
    reward_stats: dict[str, float]
    seconds: float


class RolloutLog:
    """rollouts.jsonl, a row a rollout, and graded.jsonl, a line a step: what belongs to the step as a whole. That line
    is written when the step's rows are safe on disk. It names the weights that sampled them, and proves rows and itself
    by a digest. A step that earned no reward at all has no line: its reward's call failed, and a resumed run samples
    and grades it again.

    A resumed run takes step after step from here while the next one is what it would sample itself: the same keys and
    prompts under weights that are the same bit for bit, however they came about (from a checkpoint, or from updates
    that were repeated). The first step of which that is not so is dropped with all after it; from there on the run
    samples. For the one process that writes the folder.
    """

    def __init__(self, folder: RunFolder, last_step: int):
        """last_step: the checkpoint's. Steps after it may be taken from disk; what is damaged up to it is named."""
        self.folder, self.pictures = folder, PictureLog(folder.path)
        self._lines = _lines(folder.graded)
        self._steps: Iterator[tuple[int, list[bytes]]] | None = _steps(folder.rollouts)
        self._ahead: tuple[int, list[bytes]] | None = None
        unproven = {step: line for step, line in self._lines.items() if step <= last_step}
        for step, rows in self._steps:
            if step > last_step:
                self._ahead = step, rows
                break
            if step in unproven and _proven(unproven[step], rows):
                del unproven[step]
        if unproven:
            steps = ", ".join(map(str, sorted(unproven)[:9]))
            logger.warning("%s or %s was damaged or edited in step %s", folder.rollouts, folder.graded.name, steps)

    def take(
        self, step: int, weights: str, keys: Sequence[Key], prompts: Sequence[Sequence[int]], refilled: bool = False
    ) -> GradedRollouts | None:
        """The graded rollouts of `step`, the one after that of the last call; None from the first that is not here.

        weights: digest of those that would sample now. prompts: ids for each of `keys`. refilled: further ones, which
        these keys' rewards asked for, may follow."""
        if self._steps is None:
            return None
        found, rows = self._ahead or (step, [])
        self._ahead = next(self._steps, None)
        line = self._lines.get(step)
        if found == step and line is not None and line.get("weights") == weights:
            graded = _graded(line, rows) if _proven(line, rows) else None
            if graded is None:
                logger.warning(
                    "%s was damaged or edited in step %d, which is sampled again", self.folder.rollouts, step
                )
            else:
                same = [(rollout.key, rollout.prompt_ids) for rollout in graded.rollouts]
                wanted = list(zip(keys, map(list, prompts), strict=True))
                if same[: len(wanted)] == wanted and (refilled or len(same) == len(wanted)):
                    return graded
        self._steps = None
        for path in (self.folder.rollouts, self.folder.graded):
            truncate_jsonl(path, lambda row: row["step"] < step if isinstance(row.get("step"), int) else None)
        return None

    def put(
        self,
        step: int,
        weights: str,
        graded: GradedRollouts,
        described: Sequence[Mapping[str, Any]],
        block_size: int,
    ) -> None:
        """Writes a step that was sampled under `weights`; its rollouts alone where none has a reward. described: task
        and texts of each rollout, for people and the viewer."""
        credit = graded.credit
        rows = append_jsonl(
            self.folder.rollouts,
            (
                {"step": step, **described[i], "reward": graded.rewards[i], "block_size": block_size}
                | _credit(credit.kind, credit.values[i])
                | ({"token_rewards": credit.token_rewards[i]} if credit.token_rewards else {})
                | rollout.row()
                | {"suffix_ids": rollout.suffix_ids}
                for i, rollout in enumerate(graded.rollouts)
            ),
        )
        if all(reward is None for reward in graded.rewards):
            return
        line = {
            "step": step,
            "weights": weights,
            "dropped": credit.dropped,
            "stats": credit.stats,
            "reward_stats": graded.reward_stats,
            "seconds": graded.seconds,
        }
        append_jsonl(self.folder.graded, [line | {PROOF: _proof(line, rows)}])


def _proof(line: Mapping[str, Any], rows: bytes) -> str:
    """Digest of a step's rows as they stand in rollouts.jsonl and of its line, without what a clock measures: a step
    that is done again has the same."""
    stats = {name: value for name, value in line["stats"].items() if not name.endswith("seconds")}
    timeless = {name: value for name, value in line.items() if name not in ("seconds", PROOF)} | {"stats": stats}
    return hashlib.blake2b(rows + as_jsonl([timeless]), digest_size=16).hexdigest()


def _proven(line: Mapping[str, Any], rows: Sequence[bytes]) -> bool:
    """Whether rows and line are as they were written; true of lines of 6db0e99 and before, which have no digest."""
    try:
        return PROOF not in line or line[PROOF] == _proof(line, b"".join(rows))
    except (KeyError, AttributeError):
        return False


def _lines(path: Path) -> dict[int, dict[str, Any]]:
    rows = read_jsonl(path) if path.exists() else ()
    return {row["step"]: row for row in rows if isinstance(row.get("step"), int)}


def _steps(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Each step's lines. Those that are of no step are left out, with a warning that counts them."""
    damaged = 0
    if not path.exists():
        return
    with path.open("rb") as file:
        for step, lines in itertools.groupby(file, key=_step_of):
            if step is None:
                damaged += sum(1 for _ in lines)
            else:
                yield step, list(lines)
    if damaged:
        warnings.warn(f"{path}: left out {damaged} line(s) that are no whole JSON object", stacklevel=2)


def _step_of(line: bytes) -> int | None:
    """The step of a row as `put` writes it, whose other values are not read; or else of what JSON finds."""
    if line.endswith(b"}\n") and (start := _START.match(line)):
        return int(start[1])
    step = (parsed(line) or {}).get("step")
    return step if isinstance(step, int) else None


def _credit(kind: CreditKind, value: float | list[float] | None) -> dict[str, Any]:
    """What a response earned, under the name of what it is: an advantage, or a reward for the value model."""
    return {"advantage": value} if kind == "advantage" else {"credit": value, "credit_kind": kind}


def _graded(line: Mapping[str, Any], lines: Sequence[bytes]) -> GradedRollouts | None:
    """A step from its rows; None where they have another shape."""
    rows = [row for row in map(parsed, lines) if row is not None]
    try:
        token_rewards = [row["token_rewards"] for row in rows] if rows and "token_rewards" in rows[0] else None
        kind: CreditKind = rows[0].get("credit_kind", "advantage") if rows else "advantage"
        values = [row["advantage" if kind == "advantage" else "credit"] for row in rows]
        return GradedRollouts(
            [Rollout.from_dict(dict(row)) for row in rows],
            [row["reward"] for row in rows],
            Credit(values, Counter(line["dropped"]), kind, token_rewards, line["stats"]),
            line["reward_stats"],
            line["seconds"],
        )
    except (KeyError, TypeError, ValueError):
        return None
