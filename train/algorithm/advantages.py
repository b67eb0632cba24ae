"""Rewards -> advantages: of the responses of a group, and of the tokens of a response under a value model. Pure
functions.

Shapes: G responses of one prompt, C kinds of reward; R tokens of one response, N of them trained, T denoising steps
that decided them.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Advantage = Callable[[Floats], Floats]
"""Rewards [G] of the responses of one group -> their advantages [G]."""
CreditKind = Literal["advantage", "reward"]
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


ADVANTAGES: dict[str, Advantage] = {"zscore": zscore, "centered": centered}


@dataclass(frozen=True)
class Credit:
    """What each response of a step earned: one number, or [R] one a response token; None where it is left out.

    kind: what the numbers are, advantages, or rewards that a value model turns into advantages of tokens. dropped: why
    groups were left out (reason -> groups). token_rewards: a step judge's [R] for each response that it judged.
    """

    values: Sequence[float | list[float] | None]
    dropped: Counter[str]
    kind: CreditKind = "advantage"
    token_rewards: Sequence[list[float] | None] | None = None
    stats: dict[str, float] = field(default_factory=dict)


def group_advantage(reward: Floats, advantage: Advantage = zscore) -> Floats:
    """Advantages [G] of one group's rewards [G], or of C kinds of reward [G, C]: each column goes through `advantage`,
    then the columns are summed. ValueError where it returns another shape, or a number that is not finite."""
    columns = reward[:, None] if reward.ndim == 1 else reward
    return np.sum([_checked(advantage, column) for column in columns.T], axis=0)


def _checked(advantage: Advantage, reward_G: Floats) -> Floats:
    found, name = np.asarray(advantage(reward_G.copy())), getattr(advantage, "__name__", repr(advantage))
    if found.shape != reward_G.shape or found.dtype.kind not in "fiu":
        raise ValueError(
            f"{name} returned {found.dtype} numbers of shape {found.shape} for rewards of shape {reward_G.shape}; "
            "give one number a response."
        )
    if not np.isfinite(found).all():
        raise ValueError(f"{name} returned {found.tolist()} for the rewards {reward_G.tolist()}: not finite.")
    return found.astype(np.float64)


def group_advantages(
    rewards: Sequence[float | Sequence[float] | None],
    group_size: int,
    *,
    advantage: Advantage = zscore,
    kind: CreditKind = "advantage",
    accuracy_band: tuple[float, float] = (0.0, 1.0),
    keep: Sequence[bool] | None = None,
    bonus: Sequence[float] | None = None,
) -> Credit:
    """Credit of prompt-major rewards, one number a response or one of each of C kinds. A reward of None (or keep False)
    leaves its response out of its group. kind: what the numbers will serve as.

    Left out as whole groups: no reward at all ("unrewarded"), fewer than two left ("small"), all rewards equal
    ("equal"), and, where there is one kind of reward and each of the group is 0 or 1, an accuracy outside
    `accuracy_band`, which includes its ends ("accuracy"). bonus: added to the (first kind of) rewards of the groups
    that stay.
    """
    found: list[float | None] = [None] * len(rewards)
    dropped: Counter[str] = Counter()
    for first in range(0, len(rewards), group_size):
        members = [i for i in range(first, first + group_size) if rewards[i] is not None and (keep is None or keep[i])]
        values = np.array([rewards[i] for i in members], dtype=np.float64)
        values = values[:, None] if values.ndim == 1 else values
        if all(reward is None for reward in rewards[first : first + group_size]):
            dropped["unrewarded"] += 1
        elif len(members) < 2:
            dropped["small"] += 1
        elif (values.std(0) < _SMALLEST_SPREAD).all():
            dropped["equal"] += 1
        elif not _is_within(values, *accuracy_band):
            dropped["accuracy"] += 1
        else:
            if bonus is not None:
                values[:, 0] += [bonus[i] for i in members]
            for i, number in zip(members, group_advantage(values, advantage), strict=True):
                found[i] = float(number)
    return Credit(found, dropped, kind)


def _is_within(reward_GC: Floats, low: float, high: float) -> bool:
    """Whether the accuracy of a group lies in [low, high]; also where its rewards are no verdicts of 0 and 1."""
    return reward_GC.shape[1] > 1 or not set(reward_GC[:, 0]) <= {0.0, 1.0} or low <= reward_GC.mean() <= high


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
