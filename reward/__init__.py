"""Rewards: math, code, a judge, and users' own functions."""

from reward.base import Reward
from reward.code import grade_code
from reward.math import grade_math
from reward.registry import build_reward
from reward.verdict import Verdict

__all__ = ["Reward", "Verdict", "build_reward", "grade_code", "grade_math"]
