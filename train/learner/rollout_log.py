"""The graded steps of a run on disk: what a kill in the middle of a step's updates does not cost again."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.files import append_jsonl, read_jsonl, truncate_jsonl
from runtime.run_folder import RunFolder
from sample import Rollout
from sample.rollout import Key
from train.algorithm.advantages import Credit, CreditKind


@dataclass(frozen=True)
class GradedRollouts:
    """A step's rollouts, prompt-major, with what they earned. reward_stats: counts of the reward's call; seconds: what
    sampling took."""

    rollouts: Sequence[Rollout]
    rewards: Sequence[float | None]
    scored: Credit
    reward_stats: dict[str, float]
    seconds: float


class RolloutLog:
    """rollouts.jsonl, a row a rollout, and graded.jsonl, a line a step: what belongs to the step as a whole. That line
    is written when the step's rows are safe on disk, and names the weights that sampled them by a digest. A step that
    earned no reward at all has no line: its reward's call failed, and a resumed run samples and grades it again.

    A resumed run takes step after step from here while the next one is what it would sample itself: the same keys and
    prompts under weights that are the same bit for bit, however they came about (from a checkpoint, or from updates
    that were repeated). The first step of which that is not so is dropped with all after it; from there on the run
    samples. For the one process that writes the folder.
    """

    def __init__(self, folder: RunFolder, last_step: int):
        """last_step: the last one that needs not be done again."""
        self.folder = folder
        self._lines = {row["step"]: row for row in _rows_after(folder.graded, last_step)}
        self._steps: Iterator[tuple[int, Iterator[dict[str, Any]]]] | None = itertools.groupby(
            _rows_after(folder.rollouts, last_step), key=lambda row: row["step"]
        )

    def take(
        self, step: int, weights: str, keys: Sequence[Key], prompts: Sequence[Sequence[int]]
    ) -> GradedRollouts | None:
        """The graded rollouts of `step`, the one after that of the last call; None from the first that is not here.

        weights: digest of those that would sample now. prompts: ids for each of `keys`."""
        if self._steps is None:
            return None
        found, rows = next(self._steps, (step, iter(())))
        line, kept = self._lines.get(step), list(rows)
        if found == step and line is not None and line["weights"] == weights:
            graded = _graded(line, kept)
            same = [(rollout.key, rollout.prompt_ids) for rollout in graded.rollouts]
            if same == list(zip(keys, map(list, prompts), strict=True)):
                return graded
        self._steps = None
        for path in (self.folder.rollouts, self.folder.graded):
            truncate_jsonl(path, lambda row: row.get("step", 0) < step)
        return None

    def put(
        self,
        step: int,
        weights: str,
        graded: GradedRollouts,
        texts: Sequence[str],
        tasks: Sequence[str],
        block_size: int,
    ) -> None:
        """Writes a step that was sampled under `weights`; its rollouts alone where none has a reward. texts, tasks: of
        each rollout, for people and the viewer."""
        scored = graded.scored
        append_jsonl(
            self.folder.rollouts,
            (
                {
                    "step": step,
                    "task": tasks[i],
                    "text": texts[i],
                    "reward": graded.rewards[i],
                    "block_size": block_size,
                }
                | _credit(scored.kind, scored.values[i])
                | ({"token_rewards": scored.token_rewards[i]} if scored.token_rewards else {})
                | vars(rollout)
                for i, rollout in enumerate(graded.rollouts)
            ),
        )
        if all(reward is None for reward in graded.rewards):
            return
        line = {
            "step": step,
            "weights": weights,
            "dropped": scored.dropped,
            "stats": scored.stats,
            "reward_stats": graded.reward_stats,
            "seconds": graded.seconds,
        }
        append_jsonl(self.folder.graded, [line])


def _rows_after(path: Path, last_step: int) -> Iterator[dict[str, Any]]:
    rows = read_jsonl(path) if path.exists() else iter(())
    return (row for row in rows if row["step"] > last_step)


def _credit(kind: CreditKind, value: float | list[float] | None) -> dict[str, Any]:
    """What a response earned, under the name of what it is: an advantage, or a reward for the value model."""
    return {"advantage": value} if kind == "advantage" else {"credit": value, "credit_kind": kind}


def _graded(line: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> GradedRollouts:
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
