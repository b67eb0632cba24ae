"""A user's own reward function, with TRL's signature, in a process that can be killed; and sums of rewards."""

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from reward.base import DRAWN, SAMPLED_COLUMNS, Reward, RewardError, names_of
from reward.workers.pool import Reply, WorkerPool
from runtime.doors import find_target

FAILURES_IN_A_ROW = 3


class FunctionReward(Reward):
    """`path/to/file.py:name`, called as name(prompts=..., completions=..., **columns) -> list[float | None]; what
    an `async def` gives is awaited.

    The file is imported once, in a worker process, when this object is made: ValueError when it cannot be. A call that
    raises, runs longer than `timeout_seconds` or returns something else than one number (or None) a completion gives
    None for every completion, a warning with the traceback and a count; the third such call in a row raises
    RewardError. NaN and infinities become None.
    """

    def __init__(self, function: str, *, timeout_seconds: float) -> None:
        super().__init__()
        self.function = function
        self.failures_in_a_row = 0
        path, name = find_target("reward.function", function)
        self.pool = WorkerPool(f"{path.resolve()}:{name}", workers=1, wall_seconds=timeout_seconds)
        reply = self.pool.start()
        if reply.status != "ok":
            self.close()
            raise ValueError(f"reward.function: {function} cannot be loaded\n{reply.detail.rstrip()}")
        self.signature: dict[str, Any] = reply.value

    def score(self, prompts: list[str], completions: list[str], columns: dict[str, list[Any]]) -> list[float | None]:
        reply = self.pool.run(**self._arguments({**columns, "prompts": prompts, "completions": completions}))
        problem = wrong_shape(reply.value, len(completions)) if reply.status == "ok" else self._describe(reply)
        if problem:
            return self._fail(problem, len(completions))
        rewards = [None if value is None else _number(value) for value in reply.value]
        finite = [value if value is None or math.isfinite(value) else None for value in rewards]
        self.counts["nonfinite"] = finite.count(None) - rewards.count(None)
        if self.counts["nonfinite"] and self.counts["nonfinite"] == len(rewards) - rewards.count(None):
            return self._fail("returned no finite reward", len(completions))
        self.failures_in_a_row = 0
        if self.counts["nonfinite"]:
            warnings.warn(
                f"reward function {self.function} returned {self.counts['nonfinite']} non-finite rewards; left out",
                stacklevel=3,
            )
        return finite

    def check(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._require({*names_of(rows), *SAMPLED_COLUMNS})

    def _require(self, columns: Collection[str]) -> None:
        if DRAWN in self.signature["required"] and DRAWN not in columns:
            raise ValueError(
                f"reward function {self.function} asks for {DRAWN}, the pictures that a model drew, and responses are "
                "text: set rollout.output=image (evaluation.output=image), or give the argument a default"
            )
        if missing := [name for name in self.signature["required"] if name not in columns]:
            raise ValueError(
                f"reward function {self.function} asks for {missing}, but the columns are {sorted(columns)}; map them "
                "with dataset.columns, or give the argument a default"
            )

    def _arguments(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        self._require(columns)
        return (
            columns
            if self.signature["any"]
            else {name: columns[name] for name in self.signature["names"] if name in columns}
        )

    def _describe(self, reply: Reply) -> str:
        if reply.status == "stalled":
            return f"took longer than reward.function_timeout_seconds = {self.pool.wall_seconds:g} and was killed"
        return f"raised\n{reply.detail.rstrip()}" if reply.status == "error" else reply.detail

    def _fail(self, problem: str, length: int) -> list[float | None]:
        self.failures_in_a_row += 1
        self.counts["failed_call"] = 1
        message = f"reward function {self.function} {problem}"
        if self.failures_in_a_row >= FAILURES_IN_A_ROW:
            raise RewardError(
                f"{FAILURES_IN_A_ROW} calls in a row failed, the last one so: {message}\n"
                "Mend the function and type the same command: the run resumes from its newest checkpoint."
            )
        warnings.warn(f"{message}\nthe {length} rewards of this call are left out", stacklevel=4)
        return [None] * length

    def close(self) -> None:
        self.pool.close()


def _number(value: Any) -> float:
    """A reward as a float; infinite where it is too large to be one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


class SumReward(Reward):
    """The sum of several rewards, by name, each times its weight (default 1); None where any of them is None. stats:
    theirs, and the mean of each without its weight."""

    def __init__(self, parts: Mapping[str, Reward], weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.parts, self.weights = parts, dict(weights or {})

    def __call__(self, prompts: list[str], completions: list[str], /, **columns: list[Any]) -> list[float | None]:
        rewards = super().__call__(prompts, completions, **columns)
        self.stats |= means_of(self.given)
        return rewards

    def score(self, prompts: list[str], completions: list[str], columns: dict[str, list[Any]]) -> list[float | None]:
        self.given = {}
        for name, part in self.parts.items():
            values = part(prompts, completions, **columns)
            self.counts.update(part.counts)
            self.given[name] = values
        weights = [self.weights.get(name, 1.0) for name in self.parts]
        return [_sum(values, weights) for values in zip(*self.given.values(), strict=True)]

    def check(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for part in self.parts.values():
            part.check(rows)

    def close(self) -> None:
        for part in self.parts.values():
            part.close()


def means_of(parts: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """`reward/NAME_mean` of each part that gave something."""
    given = {name: [value for value in values if value is not None] for name, values in parts.items()}
    return {f"reward/{name}_mean": math.fsum(values) / len(values) for name, values in given.items() if values}


def _sum(values: Sequence[float | None], weights: Sequence[float]) -> float | None:
    given = [weight * value for value, weight in zip(values, weights, strict=True) if value is not None]
    return math.fsum(given) if len(given) == len(values) else None


def wrong_shape(value: Any, length: int) -> str:
    """What is wrong with a returned value, or "": it must be a list of `length` numbers or None."""
    expected = f"expected a list of {length} numbers or None"
    if not isinstance(value, list):
        found = value.get("unsupported", "dict") if isinstance(value, dict) else type(value).__name__
        return f"returned a wrong type: {expected}, got {found}"
    if len(value) != length:
        return f"returned a wrong length: {expected}, got {len(value)}"
    for index, item in enumerate(value):
        if item is not None and not isinstance(item, bool | int | float):
            found = item.get("unsupported", "dict") if isinstance(item, dict) else type(item).__name__
            return f"returned a wrong type: {expected}, got {found} at index {index}"
    return ""
