"""Rewards -> advantages: of the responses of a group, and of the tokens of a response under a value model. Pure
functions.

Shapes: G responses of one prompt, C kinds of reward; R tokens of one response, N of them trained, T denoising steps
that decided them.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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


def leave_one_out(reward_G: Floats) -> Floats:
    """A_i = r_i - mean of the others' rewards = G / (G - 1) (r_i - mean). RLOO, arXiv:2402.14740."""
    return (reward_G - reward_G.mean()) * len(reward_G) / (len(reward_G) - 1)


def rank(reward_G: Floats) -> Floats:
    """A = (2 place - G - 1) / G, from (1 - G) / G to (G - 1) / G, with the place from 1 in the group's order; equal
    rewards share the mean of their places. How far apart rewards lie does not count."""
    below_G, upto_G = (np.searchsorted(np.sort(reward_G), reward_G, side) for side in ("left", "right"))
    return (below_G + upto_G - len(reward_G)) / len(reward_G)


def wd1(reward_G: Floats, psi: float = 1.0) -> Floats:
    """A = G (softmax(psi d) - softmax(-psi d)), d = r - mean: the weights of good responses less those of bad ones.
    wd1, arXiv:2507.08838, for objective=reinforce."""
    move_G = psi * centered(reward_G)
    good_G, bad_G = np.exp(move_G - move_G.max()), np.exp(move_G.min() - move_G)
    return len(reward_G) * (good_G / good_G.sum() - bad_G / bad_G.sum())


ADVANTAGES: dict[str, Advantage] = {
    "zscore": zscore,
    "centered": centered,
    "leave_one_out": leave_one_out,
    "rank": rank,
    "wd1": wd1,
}


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


@dataclass(frozen=True)
class Speed:
    """Speed as a goal of its own. values: tokens per forward of each response; weight: of their advantage beside the
    reward's. Groups without a positive reward do not train it.

    least_spread: groups whose fastest and slowest response differ by less are left out. of_right: a response without a
    positive reward counts as the group's slowest.
    """

    values: Sequence[float]
    weight: float = 1.0
    least_spread: float = 0.0
    of_right: bool = False

    def column(self, members: Sequence[int], reward_G: Floats) -> Floats:
        """The speeds [G] of a group's members."""
        speed_G = np.array([self.values[i] for i in members], dtype=np.float64)
        return np.where(reward_G > 0, speed_G, speed_G.min()) if self.of_right else speed_G


def group_advantage(reward: Floats, advantage: Advantage = zscore, weights: Sequence[float] | None = None) -> Floats:
    """Advantages [G] of one group's rewards [G], or of C kinds of reward [G, C]: each column goes through `advantage`
    (one without a difference is worth 0), then the columns are summed, each times its weight (default 1; GDPO,
    arXiv:2601.05242). ValueError where it returns another shape, or a number that is not finite."""
    columns = reward[:, None] if reward.ndim == 1 else reward
    found = [np.zeros(len(c)) if c.std() < _SMALLEST_SPREAD else _checked(advantage, c) for c in columns.T]
    return np.sum(found if weights is None else [w * a for w, a in zip(weights, found, strict=True)], axis=0)


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
    rewards: Sequence[float | None],
    group_size: int,
    *,
    advantage: Advantage = zscore,
    parts: Sequence[Mapping[str, float]] | None = None,
    weights: Mapping[str, float] | None = None,
    kind: CreditKind = "advantage",
    accuracy_band: tuple[float, float] = (0.0, 1.0),
    keep: Sequence[bool] | None = None,
    bonus: Sequence[float] | None = None,
    speed: Speed | None = None,
    whiten: bool = False,
) -> Credit:
    """Credit of prompt-major rewards. A reward of None (or keep False) leaves its response out of its group. kind: what
    the numbers will serve as.

    parts: of each response, the C kinds of reward that `rewards` are made of, by name; their advantages, each times its
    weight (default 1), then add up to that of the reward. Responses of one group have the same kinds.

    Left out as whole groups: no reward at all ("unrewarded"), fewer than two left ("small"), every kind of reward equal
    ("equal"), where there is one kind of reward and each of the group is 0 or 1, an accuracy outside `accuracy_band`,
    which includes its ends ("accuracy"), and speeds that differ too little ("speed"). bonus: added to the rewards of
    the groups that stay, of several kinds to the first that differs in the group. speed: its advantage is computed
    apart and added; a group of equal positive rewards then stays where speeds differ. whiten: the advantages of all
    groups, less their mean and divided by their spread.
    """
    found: list[float | None] = [None] * len(rewards)
    dropped: Counter[str] = Counter()
    for first in range(0, len(rewards), group_size):
        members = [i for i in range(first, first + group_size) if rewards[i] is not None and (keep is None or keep[i])]
        if all(reward is None for reward in rewards[first : first + group_size]):
            dropped["unrewarded"] += 1
            continue
        reward_G = np.array([rewards[i] for i in members], dtype=np.float64)
        reward_GC, weight_C = (reward_G[:, None], None) if parts is None else _kinds(parts, members, weights or {})
        speed_G = speed.column(members, reward_G) if speed is not None and members else None
        spread = 0.0 if speed_G is None or not (reward_G > 0).any() else float(np.ptp(speed_G))
        if why := _why_dropped(reward_GC, spread, accuracy_band, speed.least_spread if speed else 0.0):
            dropped[why] += 1
            continue
        if bonus is not None:
            differs_C = reward_GC.std(0) >= _SMALLEST_SPREAD
            reward_GC[:, int(differs_C.argmax())] += [bonus[i] for i in members]
        number_G = group_advantage(reward_GC, advantage, weight_C)
        if speed is not None and speed_G is not None and (reward_G > 0).any():
            number_G = number_G + speed.weight * group_advantage(speed_G, advantage)
        for i, number in zip(members, number_G, strict=True):
            found[i] = float(number)
    return Credit(whitened(found) if whiten else found, dropped, kind)


def _kinds(
    parts: Sequence[Mapping[str, float]], members: Sequence[int], weights: Mapping[str, float]
) -> tuple[Floats, list[float]]:
    """The kinds of reward [G, C] of a group's members, and the weight of each."""
    names = list(parts[members[0]]) if members else []
    reward_GC = np.array([[parts[i][name] for name in names] for i in members], dtype=np.float64)
    return reward_GC.reshape(len(members), len(names)), [weights.get(name, 1.0) for name in names]


def _why_dropped(
    reward_GC: Floats, spread: float, accuracy_band: tuple[float, float], least_spread: float
) -> str | None:
    """Why a group with these rewards is left out; None where it stays. spread: of its speeds, 0 where they are not
    trained."""
    if len(reward_GC) < 2:
        return "small"
    if (reward_GC.std(0) < _SMALLEST_SPREAD).all() and spread < _SMALLEST_SPREAD:
        return "equal"
    if not _is_within(reward_GC, *accuracy_band):
        return "accuracy"
    return "speed" if spread < least_spread else None


def whitened(credit: Sequence[float | None]) -> list[float | None]:
    """The numbers less their mean and divided by their population std, as they are where all are equal (GDPO's and
    LightningRL's last step, arXiv:2603.13319)."""
    given = np.array([number for number in credit if number is not None])
    if not len(given) or given.std() < _SMALLEST_SPREAD:
        return list(credit)
    return [None if number is None else float((number - given.mean()) / given.std()) for number in credit]


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
