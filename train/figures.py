"""What an evaluation found: accuracy and speed of each way of decoding, of each set of tasks and of all together."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sample import Rollout
from train.edits import edit_metrics
from train.setup.prompts import Prompt

MOST_SOURCES, LONGEST_SOURCE = 24, 60
ALL = "all"
"""The label of the mean over several sets."""


@dataclass(frozen=True)
class Evaluation:
    """One entry's responses (prompt-major, n a prompt), rewards, wall time of sampling, and tokens a block.
    source_column: of the tasks, whose values get figures of their own."""

    name: str
    prompts: Sequence[Prompt]
    rollouts: Sequence[Rollout]
    completions: Sequence[str]
    rewards: Sequence[float | None]
    seconds: float
    block_size: int | None
    source_column: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        """accuracy (reward >= 1) with its standard error over tasks, pass@k for k = 1, 2, 4, ... and n, avg@n, mean
        reward, lengths and speed; partial, the share of rewards that are neither 0 nor 1, where there are any;
        accuracy(x), stderr(x) and tasks(x) of the tasks from each source x, where there are several; edits/... of
        responses that were decoded with edits or remasking (`edit_metrics`).

        A reward of None (left out) counts in no average, a task with fewer than k rewards not in pass@k; what would be
        an average of nothing is absent.
        """
        tokens = sum(r.num_response_tokens for r in self.rollouts)
        return self._graded(self._by_task()) | {
            "length": tokens / len(self.rollouts),
            "truncated": float(np.mean([r.finish_reason == "length" for r in self.rollouts])),
            "tokens_per_forward": tokens / max(1, sum(r.num_steps for r in self.rollouts)),
            "tokens_per_second": tokens / max(1e-9, self.seconds),
            "tasks": float(len(self.prompts)),
            "left_out": float(sum(r is None for r in self.rewards)),
            **edit_metrics(self.rollouts),
            **self._by_source(),
        }

    @property
    def _n(self) -> int:
        return len(self.rollouts) // len(self.prompts)

    def _by_task(self) -> list[list[float]]:
        """The rewards that each task's responses have."""
        n = self._n
        return [[r for r in self.rewards[i : i + n] if r is not None] for i in range(0, len(self.rewards), n)]

    def _by_source(self) -> dict[str, float]:
        """Figures of the tasks of each source."""
        names = sources_of(self.prompts, self.source_column)
        found: dict[str, float] = {}
        by_task = self._by_task()
        for source in sorted({*names} - {""}):
            rewards = [by_task[i] for i, name in enumerate(names) if name == source and by_task[i]]
            if rewards:
                share = _shares(rewards)
                found |= {f"accuracy({source})": float(share.mean()), f"stderr({source})": _stderr(share)}
                found[f"tasks({source})"] = float(len(rewards))
        return found

    def _graded(self, by_task: Sequence[list[float]]) -> dict[str, float]:
        n = self._n
        by_task = [rewards for rewards in by_task if rewards]
        if not by_task:
            return {}
        share = _shares(by_task)
        accuracy = float(share.mean())
        return {
            "accuracy": accuracy,
            "stderr": _stderr(share),
            **_pass_at(by_task, n),
            f"avg@{n}": accuracy,
            "reward": float(np.mean([r for rewards in by_task for r in rewards])),
            **_partial([r for rewards in by_task for r in rewards]),
        }

    def scores(self, step: int) -> dict[str, Any]:
        """The line of scores.jsonl: task -> the rewards of its responses in the order of their keys."""
        n = self._n
        by_task = {prompt.task.id: list(self.rewards[i * n : (i + 1) * n]) for i, prompt in enumerate(self.prompts)}
        return {"step": step, "entry": self.name, "scores": by_task}

    def samples(self, with_steps: bool) -> Iterator[dict[str, Any]]:
        """One row a sample for a JSONL file."""
        n = self._n
        for i, (rollout, text, reward) in enumerate(zip(self.rollouts, self.completions, self.rewards, strict=True)):
            row = {
                "entry": self.name,
                "sample": i % n,
                **self.prompts[i // n].row(text),
                "reward": reward,
                "tokens": rollout.num_response_tokens,
                "num_steps": rollout.num_steps,
                "finish_reason": rollout.finish_reason,
            }
            if with_steps:
                view = {name: getattr(rollout, name) for name in ("token_ids", "step_map", "logprobs")}
                row |= {"block_size": self.block_size, **view, **rollout.row()}
            yield row


def metric_names(responses: int, sets: int, source_column: str) -> list[str]:
    """The names that metrics of a run's headline can have: of `responses` a task, and of this many sets."""
    each = ("accuracy", "stderr", "tasks")
    return [
        *("accuracy", "stderr", *(f"pass@{k}" for k in _pass_counts(responses)), f"avg@{responses}", "reward"),
        *("partial", "length", "truncated", "tokens_per_forward", *(["tokens_per_second"] if sets == 1 else [])),
        *("tasks", "left_out", *([f"{name}(SOURCE)" for name in each] if source_column and sets == 1 else [])),
    ]


def sources_of(prompts: Sequence[Prompt], column: str) -> list[str]:
    """Where each task is from, by its column of this name; "" where that holds nothing, and everywhere where there is
    one source alone, or more than MOST_SOURCES."""
    if not column:
        return [""] * len(prompts)
    sources = [prompt.task.columns.get(column) for prompt in prompts]
    names = [str(source)[:LONGEST_SOURCE].replace("/", "_") if source is not None else "" for source in sources]
    return names if 1 < len({*names} - {""}) <= MOST_SOURCES else [""] * len(names)


def _shares(by_task: Sequence[Sequence[float]]) -> np.ndarray:
    """Of each task the share of its responses that are right."""
    return np.array([np.mean([r >= 1.0 for r in rewards]) for rewards in by_task])


def _stderr(share: np.ndarray) -> float:
    return float(share.std(ddof=1) / math.sqrt(len(share))) if len(share) > 1 else 0.0


def _partial(rewards: Sequence[float]) -> dict[str, float]:
    share = float(np.mean([reward not in (0.0, 1.0) for reward in rewards]))
    return {"partial": share} if share else {}


def _pass_at(by_task: Sequence[Sequence[float]], n: int) -> dict[str, float]:
    """pass@k: mean over tasks of the chance that k of a task's graded responses, drawn without replacement, hold one
    that passes: 1 - C(graded - passed, k) / C(graded, k), the unbiased estimator of arXiv:2107.03374."""
    counts = [(len(rewards), sum(r >= 1.0 for r in rewards)) for rewards in by_task]
    found = {}
    for k in _pass_counts(n):
        chances = [
            1.0 - math.comb(graded - passed, k) / math.comb(graded, k) for graded, passed in counts if graded >= k
        ]
        if chances:
            found[f"pass@{k}"] = float(np.mean(chances))
    return found


def _pass_counts(n: int) -> list[int]:
    return sorted({*(2**i for i in range(n.bit_length())), n})


def figures(results: Sequence[Evaluation], weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Metrics by entry. weights: label of each set -> its weight; with several, their weighted means come first, as
    entries of the label ALL: of what all sets have; their standard error is that of a weighted sum of independent
    means, tasks and left_out are sums."""
    found = {result.name: result.metrics for result in results}
    if len(weights) < 2:
        return found
    total, means = sum(weights.values()), {}
    for name in dict.fromkeys(name.split("/", 1)[1] for name in found):
        sets = {label: found[f"{label}/{name}"] for label in weights}
        shared = [key for key in next(iter(sets.values())) if all(key in each for each in sets.values())]
        mean = {
            key: sum(weights[label] * sets[label][key] for label in sets) / total for key in shared if "(" not in key
        }
        mean |= {key: sum(each[key] for each in sets.values()) for key in ("tasks", "left_out")}
        if "stderr" in mean:
            mean["stderr"] = math.hypot(*(weights[label] * each["stderr"] for label, each in sets.items())) / total
        mean.pop("tokens_per_second", None)
        means[f"{ALL}/{name}"] = mean
    return means | found


def area_under_parallelism(points: Sequence[tuple[float, float]], alpha: float = 3.0, slack: float = 5.0) -> float:
    """AUP of d3LLM (arXiv:2601.07568): accuracy in percent over tokens per forward, the area under it, where accuracy
    that is lost counts less and less.

    points: (tokens per forward r, accuracy y in percent), sorted here by r. Those with y < y_1 - slack are left out.
    r_1 y_1 + sum_i (r_i - r_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1})) / 2, W(y) = min(exp(-alpha (1 - y / y_max)), 1);
    y_max is the best of these points (theirs: of all methods that they compare). 0 where nothing is right.
    """
    ordered = sorted(points)
    kept = [(r, y) for r, y in ordered if y >= ordered[0][1] - slack]
    best = max((y for _, y in kept), default=0.0)
    if best <= 0:
        return 0.0
    weighted = [(r, y * min(math.exp(-alpha * (1 - y / best)), 1.0)) for r, y in kept]
    steps = zip(weighted, weighted[1:], strict=False)
    return kept[0][0] * kept[0][1] + sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in steps)
