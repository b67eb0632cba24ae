"""Rewards of a judge model: marks, comparisons, and marks of steps."""

from reward.judge.build import build_judge

__all__ = ["build_judge"]
