"""The reward of programs: split tests (plan), a sandbox, and verdicts."""

from reward.code.reward import CodeGrader, CodeReward, grade_code
from reward.code.verdict import Verdict

__all__ = ["CodeGrader", "CodeReward", "Verdict", "grade_code"]
