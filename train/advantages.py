"""Rewards of a group -> advantages, and which groups teach anything. Pure functions.

Shapes: G responses of one prompt.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_SMALLEST_SPREAD = 1e-8


def zscore(reward_G: Floats) -> Floats:
    """A = (r - mean) / std, population std; 0 where all are equal. GRPO, arXiv:2402.03300."""
    spread = reward_G.std()
    if spread < _SMALLEST_SPREAD:
        return np.zeros_like(reward_G)
    return (reward_G - reward_G.mean()) / spread


def centered(reward_G: Floats) -> Floats:
    """A = r - mean. Dr. GRPO, arXiv:2503.20783."""
    return reward_G - reward_G.mean()


ADVANTAGES: dict[str, Callable[[Floats], Floats]] = {"zscore": zscore, "centered": centered}


@dataclass(frozen=True)
class Scored:
    """Advantage of each response, None where it is left out, and why groups were left out (reason -> groups)."""

    advantages: list[float | None]
    dropped: Counter[str]


def group_advantages(
    rewards: Sequence[float | None],
    group_size: int,
    *,
    kind: str,
    min_accuracy: float = 0.0,
    max_accuracy: float = 1.0,
    keep: Sequence[bool] | None = None,
    bonus: Sequence[float] | None = None,
) -> Scored:
    """Advantages of prompt-major rewards. A reward of None (or keep False) leaves its response out of its group.

    Left out as whole groups: fewer than two rewards ("small"), all rewards equal ("equal"), and, where every reward
    of the group is 0 or 1, an accuracy outside [min_accuracy, max_accuracy] ("accuracy"). bonus: added to the rewards
    of the groups that stay.
    """
    advantages: list[float | None] = [None] * len(rewards)
    dropped: Counter[str] = Counter()
    for first in range(0, len(rewards), group_size):
        members = [i for i in range(first, first + group_size) if rewards[i] is not None and (keep is None or keep[i])]
        values = np.array([rewards[i] for i in members], dtype=np.float64)
        if len(members) < 2:
            dropped["small"] += 1
        elif values.std() < _SMALLEST_SPREAD:
            dropped["equal"] += 1
        elif set(values) <= {0.0, 1.0} and not min_accuracy <= values.mean() <= max_accuracy:
            dropped["accuracy"] += 1
        else:
            if bonus is not None:
                values = values + np.array([bonus[i] for i in members])
            for i, advantage in zip(members, ADVANTAGES[kind](values), strict=True):
                advantages[i] = float(advantage)
    return Scored(advantages, dropped)
