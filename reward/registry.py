"""Which reward a configuration means."""

from collections.abc import Callable
from typing import Literal

from reward.base import Reward
from reward.code.reward import CodeGrader, CodeReward
from reward.function import FunctionReward, SumReward
from reward.judge.judge import Judge
from reward.judge.preference import JudgeReward
from reward.math.reward import CPU_SECONDS, MathReward, OptionReward


def build_reward(
    *,
    function: str | None = None,
    beside_verifier: bool = False,
    data_type: str = "math",
    workers: int = 0,
    timeout_seconds: float = CPU_SECONDS,
    function_timeout_seconds: float = 600.0,
    all_or_nothing: bool = False,
    memory_gib: float = 2.0,
    allow_unsafe: bool = False,
    allow_forgeable: bool = False,
    judge: Judge | None = None,
    judge_mode: Literal["score", "pairwise"] = "score",
    judge_samples: int = 1,
    judge_prompt_tokens: int = 5000,
) -> Reward:
    """The reward of a run. ValueError, before any expensive work, for what cannot work.

    function: `path/to/file.py:name`, instead of the reward of `data_type`, or with beside_verifier added to it;
    function_timeout_seconds: wall-clock time of one call. workers: processes, 0 = one a core. timeout_seconds:
    processor time of one math answer. all_or_nothing, memory_gib, allow_*: those of CodeReward and CodeGrader. judge
    (of build_judge, or a function of its kind): its marks or comparisons instead of the reward of `data_type`, asked in
    about judge_prompt_tokens tokens.
    """
    for name, seconds in (("timeout", timeout_seconds), ("function_timeout", function_timeout_seconds)):
        if seconds <= 0:
            raise ValueError(f"reward.{name}_seconds must be positive, got {seconds}")
    if workers < 0:
        raise ValueError(f"reward.workers must be 0 (one a core) or more, got {workers}")
    if beside_verifier and not function:
        raise ValueError("reward.beside_verifier=true adds reward.function to the verifier, but none is named")
    if function and not beside_verifier:
        if judge is not None:
            raise ValueError(
                "reward.function and a judge are both named: keep one, or add them up: reward.beside_verifier=true"
            )
        return FunctionReward(function, timeout_seconds=function_timeout_seconds)
    if judge is not None:
        verifier: Reward = JudgeReward(
            judge, mode=judge_mode, samples=judge_samples, max_prompt_tokens=judge_prompt_tokens
        )
    else:
        verifier = _verifier(
            data_type,
            workers=workers,
            timeout_seconds=timeout_seconds,
            all_or_nothing=all_or_nothing,
            memory_gib=memory_gib,
            allow_unsafe=allow_unsafe,
            allow_forgeable=allow_forgeable,
        )
    if not function:
        return verifier
    own = FunctionReward(function, timeout_seconds=function_timeout_seconds)
    return SumReward({"verifier": verifier, "function": own})


def _verifier(
    data_type: str,
    *,
    workers: int,
    timeout_seconds: float,
    all_or_nothing: bool,
    memory_gib: float,
    allow_unsafe: bool,
    allow_forgeable: bool,
) -> Reward:
    def math() -> Reward:
        return MathReward(workers=workers, timeout_seconds=timeout_seconds)

    def code() -> Reward:
        grader = CodeGrader(
            workers=workers,
            allow_unsafe=allow_unsafe,
            allow_forgeable=allow_forgeable,
            memory_bytes=int(memory_gib * 2**30),
        )
        return CodeReward(grader, all_or_nothing=all_or_nothing)

    kinds: dict[str, Callable[[], Reward]] = {"math": math, "general": math, "option": OptionReward, "code": code}
    if data_type not in kinds:
        raise ValueError(f"no reward for data_type {data_type!r}; known: {', '.join(kinds)}, or name a reward.function")
    return kinds[data_type]()
