"""When a run has stopped getting better."""

import math

import pytest

from train.algorithm.early import rounds_without_gain


@pytest.mark.parametrize(
    ("values", "gain", "lower", "rounds"),
    [
        ([], 0.0, False, 0),
        ([1.0], 0.0, False, 0),
        ([1.0, 1.0, 1.0], 0.0, False, 2),
        ([1.0, 2.0, 1.5], 0.0, False, 1),
        ([1.0, 2.0, 3.0], 1.5, False, 0),
        ([1.0, 2.0, 2.4], 1.5, False, 2),
        ([3.0, 2.0, 2.5, 1.9], 0.0, True, 0),
        ([3.0, 2.0, 2.5, 1.9], 0.5, True, 2),
        ([math.nan, 3.0, 2.0, 1.0], 0.0, True, 0),
        ([3.0, math.nan, math.nan], 0.0, True, 2),
        ([math.nan, math.nan], 0.0, False, 1),
    ],
)
def test_rounds_without_a_gain_are_counted_from_the_best(values, gain, lower, rounds):
    assert rounds_without_gain(values, gain, lower=lower) == rounds
