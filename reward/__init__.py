"""Rewards: math, code, a judge, and users' own functions."""

from reward.base import Reward
from reward.code.reward import grade_code
from reward.code.verdict import Verdict
from reward.math.reward import grade_math
from reward.registry import build_reward

__all__ = ["Reward", "Verdict", "build_reward", "grade_code", "grade_math"]
