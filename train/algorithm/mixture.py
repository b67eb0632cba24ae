"""Several data sets drawn from in proportion to weights, as evenly as whole draws allow."""

import functools
from collections.abc import Sequence

import numpy as np


def drawn(weights: Sequence[float], first: int, count: int) -> list[tuple[int, int]]:
    """Which set the draws `first` (from 0) to `first + count` of an endless row are from: (set, number of this draw
    among those of its set, from 0).

    Draw k of a set with weight w comes at time (k + 1/2) / w, sets of one time in their order (Webster's method). After
    any number n of draws a set with share p = w / sum(weights) of S sets has had n p of them to within
    1/2 + p (S/2 - 1): at time t it has had t w to within 1/2, and so t sum(weights) is n to within S/2. Sets that weigh
    as much as they have members have each had all of them after one pass. A function of its arguments alone: nothing is
    kept for a resume.
    """
    if len(weights) == 1:
        return [(0, place) for place in range(first, first + count)]
    weight_S = np.asarray(weights, dtype=np.float64)
    share_S = weight_S / weight_S.sum()
    within_S = 1.5 + share_S * (len(weights) / 2 - 1)  # one more than it can be: rounding
    before_S = np.maximum(0, np.ceil(first * share_S - within_S)).astype(np.int64)  # draws that surely came before
    upto_S = np.floor((first + count) * share_S + within_S).astype(np.int64) + 1
    number = np.concatenate([np.arange(low, high) for low, high in zip(before_S, upto_S, strict=True)])
    set_of = np.repeat(np.arange(len(weights)), upto_S - before_S)
    start = first - int(before_S.sum())
    chosen = np.argsort((number + 0.5) / weight_S[set_of], kind="stable")[start : start + count]
    return list(zip(set_of[chosen].tolist(), number[chosen].tolist(), strict=True))


@functools.lru_cache(maxsize=1)
def epoch_order(seed: int, epoch: int, sets: tuple[tuple[int, float], ...]) -> tuple[tuple[int, int], ...]:
    """The examples of epoch `epoch` (from 0), which has as many as there are: (number of an example, set after set;
    pass over its set). sets: (examples, weight) of each. One set, or sets that weigh as much as they have examples:
    each example once."""
    total = sum(size for size, _ in sets)
    places = drawn([weight for _, weight in sets], epoch * total, total)
    seeds = [[seed] if len(sets) == 1 else [seed, which] for which in range(len(sets))]
    passes = {(which, place // sets[which][0]) for which, place in places}
    orders = {
        (which, turn): np.random.default_rng([*seeds[which], turn]).permutation(sets[which][0])
        for which, turn in passes
    }
    first = np.cumsum([0, *(size for size, _ in sets)]).tolist()
    found = []
    for which, place in places:
        turn, index = divmod(place, sets[which][0])
        found.append((first[which] + int(orders[which, turn][index]), turn))
    return tuple(found)
