"""Two runs on the same tasks: the difference of their accuracies, and how sure it is.

Standard error and interval are over tasks, whose responses belong together; McNemar's exact test counts pairs of
responses to the same task under the same number (McNemar 1947: of the pairs that differ, half would favour each side).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
Answers = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Paired:
    """Second less first. low, high: 95% interval of the bootstrap over tasks. gained, lost: pairs that the second
    alone, or the first alone, has right; p: that chance alone makes them differ as much or more."""

    tasks: int
    first: float
    second: float
    difference: float
    stderr: float
    low: float
    high: float
    gained: int
    lost: int
    p: float


def paired(first: Answers, second: Answers, seed: int = 0) -> Paired | None:
    """Compares the rewards of two models (right: 1 or more) on the tasks that both have; a response without a reward
    leaves its pair out. None where no pair is left."""
    rights: list[tuple[float, float]] = []
    gained = lost = 0
    for task in first:
        given = zip(first[task], second.get(task, ()), strict=False)
        pairs = [(a >= 1.0, b >= 1.0) for a, b in given if a is not None and b is not None]
        if not pairs:
            continue
        gained += sum(b and not a for a, b in pairs)
        lost += sum(a and not b for a, b in pairs)
        rights.append((sum(a for a, _ in pairs) / len(pairs), sum(b for _, b in pairs) / len(pairs)))
    if not rights:
        return None
    table = np.array(rights)
    differences = table[:, 1] - table[:, 0]
    tasks = len(differences)
    low, high = _interval(differences, seed)
    return Paired(
        tasks,
        float(table[:, 0].mean()),
        float(table[:, 1].mean()),
        float(differences.mean()),
        float(differences.std(ddof=1) / math.sqrt(tasks)) if tasks > 1 else 0.0,
        low,
        high,
        gained,
        lost,
        mcnemar(gained, lost),
    )


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p of `gained` against `lost` differing pairs: the binomial test with 1/2."""
    differing = gained + lost
    if differing == 0:
        return 1.0
    tail = sum(math.comb(differing, k) for k in range(min(gained, lost) + 1))
    return float(min(1.0, 2 * tail / 2**differing))


def _interval(differences: np.ndarray, seed: int) -> tuple[float, float]:
    """2.5% and 97.5% of the mean over tasks drawn with replacement (Efron's percentile bootstrap)."""
    generator = np.random.default_rng(seed)
    tasks = len(differences)
    values, counts = np.unique(differences, return_counts=True)
    drawn = generator.multinomial(tasks, counts / tasks, size=RESAMPLES)  # the same as to draw tasks, by their values
    low, high = np.quantile(drawn @ values / tasks, [0.025, 0.975])
    return float(low), float(high)
