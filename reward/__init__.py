"""Rewards: math, code, a judge, and users' own functions.

What is named here is loaded when it is first used: every worker process imports this package, and the parser of
mathematical answers takes most of a second, which a worker of a user's function can do without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reward.base import Reward
    from reward.code.reward import grade_code
    from reward.code.verdict import Verdict
    from reward.math.reward import grade_math
    from reward.registry import build_reward

__all__ = ["Reward", "Verdict", "build_reward", "grade_code", "grade_math"]

_FILES = {
    "Reward": "reward.base",
    "Verdict": "reward.code.verdict",
    "build_reward": "reward.registry",
    "grade_code": "reward.code.reward",
    "grade_math": "reward.math.reward",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module 'reward' has no attribute {name!r}")
    return getattr(import_module(_FILES[name]), name)
