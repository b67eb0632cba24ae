"""Which reward a configuration means."""

from typing import Literal

from reward.base import Reward
from reward.code import CodeGrader, CodeReward
from reward.function import FunctionReward
from reward.judge import Judge
from reward.math import MathReward, OptionReward
from reward.preference import JudgeReward

DATA_TYPES = ("math", "general", "option", "code")


def build_reward(
    *,
    function: str | None = None,
    data_type: str = "math",
    workers: int = 0,
    timeout_seconds: float = 5.0,
    all_or_nothing: bool = False,
    memory_gib: float = 2.0,
    allow_unsafe: bool = False,
    allow_forgeable: bool = False,
    judge: Judge | None = None,
    judge_mode: Literal["score", "pairwise"] = "score",
    judge_samples: int = 1,
) -> Reward:
    """The reward of a run. ValueError, before any expensive work, for what cannot work.

    function: `path/to/file.py:name`, instead of the reward of `data_type`. workers: processes, 0 = one a core.
    timeout_seconds: for a function, wall-clock time of one call; for math, processor time of one answer; code goes by
    the tasks' own test_time_limit. The rest is for code: all_or_nothing gives 1.0 or 0.0 instead of the share of tests
    passed, memory_gib limits a program, allow_unsafe and allow_forgeable are those of CodeGrader.
    judge (of build_judge, or any function of its kind): its marks or comparisons instead of the reward of `data_type`.
    """
    if timeout_seconds <= 0:
        raise ValueError(f"reward.timeout_seconds must be positive, got {timeout_seconds}")
    if workers < 0:
        raise ValueError(f"reward.workers must be 0 (one a core) or more, got {workers}")
    if function:
        return FunctionReward(function, timeout_seconds=timeout_seconds)
    if judge is not None:
        return JudgeReward(judge, mode=judge_mode, samples=judge_samples)
    if data_type == "option":
        return OptionReward()
    if data_type in ("math", "general"):
        return MathReward(workers=workers, timeout_seconds=timeout_seconds)
    if data_type != "code":
        known = ", ".join(DATA_TYPES)
        raise ValueError(f"no reward for data_type {data_type!r}; known: {known}, or name a reward.function")
    grader = CodeGrader(
        workers=workers,
        allow_unsafe=allow_unsafe,
        allow_forgeable=allow_forgeable,
        memory_bytes=int(memory_gib * 2**30),
    )
    return CodeReward(grader, all_or_nothing=all_or_nothing)
