"""The reward of mathematical answers and of options."""

from reward.math.reward import MathGrader, MathReward, OptionReward, grade_math

__all__ = ["MathGrader", "MathReward", "OptionReward", "grade_math"]
