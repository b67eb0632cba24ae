"""Rewards: math, code, a judge, and users' own functions.

What is named here is loaded when it is first used: every worker process imports this package, and the parser of
mathematical answers takes most of a second, which a worker of a user's function can do without.
"""

from typing import TYPE_CHECKING

from runtime.lazy import loader

if TYPE_CHECKING:
    from reward.base import Reward
    from reward.code.reward import grade_code
    from reward.code.verdict import Verdict
    from reward.math.reward import grade_math
    from reward.registry import build_reward

__all__ = ["Reward", "Verdict", "build_reward", "grade_code", "grade_math"]

_MODULES = {
    "Reward": "reward.base",
    "Verdict": "reward.code.verdict",
    "build_reward": "reward.registry",
    "grade_code": "reward.code.reward",
    "grade_math": "reward.math.reward",
}

__getattr__ = loader(__name__, _MODULES)
