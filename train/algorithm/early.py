"""When a run has stopped getting better."""

import math
from collections.abc import Sequence


def rounds_without_gain(values: Sequence[float], gain: float = 0.0, *, lower: bool = False) -> int:
    """How many of the last values are not better than the best before them by more than `gain`. lower: less is
    better. NaN is never the best: it counts as no gain."""
    best, last = None, 0
    for place, value in enumerate(values):
        if math.isnan(value):
            continue
        better = -value if lower else value
        if best is None or better > best + gain:
            best, last = better, place
    return max(0, len(values) - 1 - last)
