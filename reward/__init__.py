"""Rewards: math, code, a judge, and users' own functions."""

from reward.base import Reward
from reward.math import grade_math
from reward.registry import build_reward

__all__ = ["Reward", "build_reward", "grade_math"]
