"""Which reward a configuration means."""

from collections.abc import Mapping
from typing import Any

from configs.schema import DATA_TYPES, ExecuteConfig, RewardConfig
from reward.base import Reward
from reward.code.reward import CodeGrader, CodeReward
from reward.function import FunctionReward, SumReward
from reward.judge.preference import JudgeReward
from reward.pictures import CaptionReward, DrawnReward, Similarity
from reward.workers.pool import default_workers

VERIFIER = "verifier"
"""The name of the data type's own part of a reward."""


def build_reward(
    reward: RewardConfig,
    execute: ExecuteConfig,
    data_type: str,
    judge: JudgeReward | None = None,
    similarity: Similarity | None = None,
) -> Reward:
    """The reward of a run. ValueError, naming the key, before any expensive work, for what cannot work.

    reward.function replaces the verifier of `data_type`, or is added to it (reward.beside_verifier). judge: marks or
    comparisons in place of that verifier. similarity: what scores captions and drawn pictures (`reward.pictures`).
    """
    _check(reward, data_type, judge)
    functions = named_functions(reward)
    if len(functions) == 1 and not reward.beside_verifier and not reward.weights:
        return _function(next(iter(functions.values())), reward)
    if functions and not reward.beside_verifier:
        return _summed({}, functions, reward)
    verifier = judge or _verifier(reward, execute, data_type, similarity)
    return _summed({VERIFIER: verifier}, functions, reward) if functions else verifier


def named_functions(reward: RewardConfig) -> dict[str, str]:
    """Name in metrics and reward.weights -> path/to/file.py:name, of each function: its own name, "function" for one
    that is named alone beside the verifier. ValueError for a weight of none of them, or two of one name."""
    given = reward.function if isinstance(reward.function, list) else [reward.function] if reward.function else []
    names = [target.rpartition(":")[2] for target in given]
    if reward.beside_verifier and not isinstance(reward.function, list):
        names = ["function"] * len(given)
    if twice := [name for name in names if names.count(name) > 1 or name == VERIFIER]:
        raise ValueError(f"reward.function: {twice[0]} is the name of two parts of the reward; rename one.")
    known = [*names, *([VERIFIER] if reward.beside_verifier else [])]
    if unknown := [name for name in reward.weights if name not in known]:
        parts = ", ".join(known) or "the verifier alone"
        raise ValueError(f"reward.weights names {unknown[0]}, but the parts of the reward are {parts}.")
    return dict(zip(names, given, strict=True))


def _summed(parts: dict[str, Reward], functions: Mapping[str, str], reward: RewardConfig) -> SumReward:
    """The parts and the functions as one reward; where a function cannot be loaded, the others are closed."""
    try:
        for name, target in functions.items():
            parts[name] = _function(target, reward)
    except BaseException:
        for part in parts.values():
            part.close()
        raise
    return SumReward(parts, reward.weights)


def _check(reward: RewardConfig, data_type: str, judge: JudgeReward | None) -> None:
    for name in ("timeout_seconds", "function_timeout_seconds"):
        if (seconds := getattr(reward, name)) <= 0:
            raise ValueError(f"reward.{name} must be positive, got {seconds}")
    if reward.workers < 0:
        raise ValueError(f"reward.workers must be 0 (one a core) or more, got {reward.workers}")
    if reward.beside_verifier and not reward.function:
        raise ValueError("reward.beside_verifier=true adds reward.function to the verifier, but none is named")
    if reward.function and judge is not None and not reward.beside_verifier:
        raise ValueError(
            "reward.function and a judge are both named: keep one, or add them up: reward.beside_verifier=true"
        )
    if data_type not in DATA_TYPES and judge is None and not reward.function:
        raise ValueError(
            f"no reward for data_type {data_type!r}; known: {', '.join(DATA_TYPES)}, or name a reward.function"
        )


def _function(target: str, reward: RewardConfig) -> FunctionReward:
    return FunctionReward(target, timeout_seconds=reward.function_timeout_seconds)


def _verifier(reward: RewardConfig, execute: ExecuteConfig, data_type: str, similarity: Similarity | None) -> Reward:
    if data_type == "code":
        grader = CodeGrader(
            workers=min(execute.num_chunk, default_workers()),
            allow_unsafe=execute.allow_unsafe,
            allow_forgeable=execute.allow_forgeable,
            memory_bytes=int(execute.memory_gib * 2**30),
        )
        return CodeReward(grader, all_or_nothing=execute.all_or_nothing)
    from reward.math.reward import MathReward, OptionReward  # its parser takes half a second to import
    from reward.math.short import ShortReward

    in_box = reward.answer_must_in_box
    limits: dict[str, Any] = {"workers": reward.workers, "timeout_seconds": reward.timeout_seconds}
    if data_type == "option":
        return OptionReward(in_box)
    if data_type == "mmu":
        short = ShortReward(**limits, in_box=in_box, tolerance=reward.number_tolerance)
        return DrawnReward(CaptionReward(short, similarity), similarity)
    return DrawnReward(MathReward(**limits, in_box=in_box), similarity)
