"""When a run has stopped getting better."""

from collections.abc import Sequence


def rounds_without_gain(values: Sequence[float], gain: float = 0.0, *, lower: bool = False) -> int:
    """How many of the last values are not better than the best before them by more than `gain`. lower: less is
    better."""
    best, last = None, 0
    for place, value in enumerate(values):
        better = -value if lower else value
        if best is None or better > best + gain:
            best, last = better, place
    return max(0, len(values) - 1 - last)
