"""Which reward a configuration means."""

from reward.base import Reward
from reward.function import FunctionReward
from reward.math import MathReward, OptionReward

DATA_TYPES = ("math", "general", "option")


def build_reward(
    *, function: str | None = None, data_type: str = "math", workers: int = 0, timeout_seconds: float = 5.0
) -> Reward:
    """The reward of a run. ValueError, before anything is started, for what cannot work.

    function: `path/to/file.py:name`, instead of the reward of `data_type`. workers: processes, 0 = one a core.
    timeout_seconds: for a function, wall-clock time of one call; for math, processor time of one answer.
    """
    if timeout_seconds <= 0:
        raise ValueError(f"reward.timeout_seconds must be positive, got {timeout_seconds}")
    if workers < 0:
        raise ValueError(f"reward.workers must be 0 (one a core) or more, got {workers}")
    if function:
        return FunctionReward(function, timeout_seconds=timeout_seconds)
    if data_type == "option":
        return OptionReward()
    if data_type in ("math", "general"):
        return MathReward(workers=workers, timeout_seconds=timeout_seconds)
    raise ValueError(
        f"no reward for data_type {data_type!r}; known: {', '.join(DATA_TYPES)}, or name a reward.function"
    )
