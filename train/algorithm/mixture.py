"""Several data sets drawn from in proportion to weights, as evenly as whole draws allow."""

import functools
from collections.abc import Sequence

import numpy as np


def drawn(weights: Sequence[float], first: int, count: int) -> list[tuple[int, int]]:
    """Which set the draws `first` (from 0) to `first + count` of an endless row are from: (set, number of this draw
    among those of its set, from 0).

    Draw k of a set with weight w comes at time (k + 1/2) / w, sets of one time in their order. So after any number n of
    draws each set has had its share n w / sum(weights) of them but for one, and sets that weigh as much as they have
    members have each had all of them after one pass. A function of its arguments alone: nothing is kept for a resume.
    """
    if len(weights) == 1:
        return [(0, place) for place in range(first, first + count)]
    share_S = np.asarray(weights, dtype=np.float64)
    most = [int(np.ceil((first + count) * share / share_S.sum())) + 1 for share in share_S]
    time = np.concatenate([(np.arange(draws) + 0.5) / share for draws, share in zip(most, share_S, strict=True)])
    set_of = np.repeat(np.arange(len(weights)), most)
    number = np.concatenate([np.arange(draws) for draws in most])
    chosen = np.argsort(time, kind="stable")[first : first + count]
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
