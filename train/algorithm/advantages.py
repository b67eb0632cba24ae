"""Rewards -> advantages: of the responses of a group, and of the tokens of a response under a value model. Pure
functions.

Shapes: G responses of one prompt, R tokens of one response, N of them trained, T denoising steps that decided them.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
class Credit:
    """Advantage of each response (one number, or [R] one a response token), None where it is left out, and why groups
    were left out (reason -> groups). token_rewards: a step judge's [R] for each response that it judged."""

    advantages: Sequence[float | list[float] | None]
    dropped: Counter[str]
    token_rewards: Sequence[list[float] | None] | None = None
    stats: dict[str, float] = field(default_factory=dict)


def group_advantages(
    rewards: Sequence[float | None],
    group_size: int,
    *,
    kind: str,
    min_accuracy: float = 0.0,
    max_accuracy: float = 1.0,
    keep: Sequence[bool] | None = None,
    bonus: Sequence[float] | None = None,
) -> Credit:
    """Advantages of prompt-major rewards. A reward of None (or keep False) leaves its response out of its group.

    Left out as whole groups: no reward at all ("unrewarded"), fewer than two left ("small"), all rewards equal
    ("equal"), and, where every reward of the group is 0 or 1, an accuracy outside [min_accuracy, max_accuracy]
    ("accuracy"). bonus: added to the rewards of the groups that stay.
    """
    advantages: list[float | None] = [None] * len(rewards)
    dropped: Counter[str] = Counter()
    for first in range(0, len(rewards), group_size):
        members = [i for i in range(first, first + group_size) if rewards[i] is not None and (keep is None or keep[i])]
        values = np.array([rewards[i] for i in members], dtype=np.float64)
        if all(reward is None for reward in rewards[first : first + group_size]):
            dropped["unrewarded"] += 1
        elif len(members) < 2:
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
    return Credit(advantages, dropped)


def last_step_reward(reward: float, step_N: NDArray[np.int64]) -> Floats:
    """A response's reward as token rewards [N]: `reward` at every token of the last step, 0 elsewhere."""
    return np.where(step_N == step_N.max(), reward, 0.0)


def step_gae(
    reward_N: Floats, value_N: NDArray[np.floating], step_N: NDArray[np.int64], *, gamma: float, lam: float
) -> tuple[Floats, Floats]:
    """Returns [N] and advantages [N] by generalised advantage estimation (arXiv:1506.02438) over denoising steps, as
    TraceRL has it (arXiv:2509.06949). The distinct numbers of step_N, ascending, are the steps; with r*_t and V*_t
    the means over the tokens of step t, and everything 0 after the last one,

        R*_t = r*_t + gamma R*_{t+1},           A*_t = r*_t - V*_t + gamma V*_{t+1} + gamma lam A*_{t+1}
        R_j  = r_j  + gamma R*_{t+1},           A_j  = r_j  - V_j  + gamma V*_{t+1} + gamma lam A*_{t+1}

    for a token j of step t.
    """
    _, t_N, tokens_T = np.unique(step_N, return_inverse=True, return_counts=True)
    T = len(tokens_T)
    reward_T, value_T, return_T, advantage_T = np.zeros((4, T + 1))
    reward_T[:T] = np.bincount(t_N, reward_N) / tokens_T
    value_T[:T] = np.bincount(t_N, value_N) / tokens_T
    for t in reversed(range(T)):
        return_T[t] = reward_T[t] + gamma * return_T[t + 1]
        ahead = value_T[t + 1] + lam * advantage_T[t + 1]
        advantage_T[t] = reward_T[t] - value_T[t] + gamma * ahead
    ahead_T = value_T + lam * advantage_T
    return reward_N + gamma * return_T[t_N + 1], reward_N - value_N + gamma * ahead_T[t_N + 1]
