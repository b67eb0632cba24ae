"""Paired differences over seeds, their intervals, and Holm's correction."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mpmath import betainc, findroot


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, half the width of its 95% interval, and the two-sided p of Student's test; both None
    for a single pair, and where all pairs differ by the same."""

    mean: float
    half_width: float | None
    p: float | None
    pairs: int


def two_sided_p(t: float, freedom: int) -> float:
    """Chance of a Student's t as far from 0 (regularised incomplete beta function, DLMF 8.17)."""
    return float(betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True))


def critical_t(freedom: int, p: float = 0.05) -> float:
    """The t whose two-sided p is this."""
    return float(findroot(lambda t: two_sided_p(float(t), freedom) - p, (1.0, 15.0), solver="anderson"))


def paired(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """`one` less `other` over the seeds of both; None where they share none."""
    gaps = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
    if not gaps:
        return None
    mean, n = statistics.mean(gaps), len(gaps)
    spread = statistics.stdev(gaps) if n > 1 else 0.0
    if not spread:
        return Difference(mean, None, None, n)
    error = spread / n**0.5
    return Difference(mean, critical_t(n - 1) * error, two_sided_p(mean / error, n - 1), n)


def holm(ps: Sequence[float]) -> list[float]:
    """p of each comparison, corrected for their number (Holm 1979): the k-th smallest of m times m - k + 1, and never
    below a smaller one's."""
    order = sorted(range(len(ps)), key=ps.__getitem__)
    corrected, least = [0.0] * len(ps), 0.0
    for place, which in enumerate(order):
        least = min(1.0, max(least, (len(ps) - place) * ps[which]))
        corrected[which] = least
    return corrected
