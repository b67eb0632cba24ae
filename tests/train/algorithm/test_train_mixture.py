"""Draws from several data sets: their shares, and that each member comes once a pass."""

from collections import Counter

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from train.algorithm.curriculum import Curriculum
from train.algorithm.mixture import drawn, epoch_order

BAND = (0.2, 0.8)
weights = st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.0, 7.0, 100.0]), min_size=1, max_size=14)


@settings(max_examples=12)
@example([100.0] + [1.0] * 9, 0, 120)
@given(weights, st.integers(0, 60), st.integers(1, 30))
def test_after_any_number_of_draws_each_set_has_had_its_share(weights, first, count):
    found = drawn(weights, first, count)
    had = Counter(which for which, _ in drawn(weights, 0, first + count))
    for which, weight in enumerate(weights):
        share = weight / sum(weights)
        within = 0.5 + share * (len(weights) / 2 - 1) if len(weights) > 1 else 0.0
        assert abs(had[which] - (first + count) * share) <= within + 1e-9
    for which, number in found:
        assert number < had[which]


@settings(max_examples=12)
@example([100.0] + [1.0] * 9, 16)
@example([8.0, 1.0, 1.0, 1.0, 1.0, 1.0], 1)
@given(weights, st.integers(1, 40))
def test_steps_draw_one_endless_row_piece_by_piece(weights, count):
    """A resumed run draws what an uninterrupted one does, and no draw of a set comes twice or never."""
    steps = [drawn(weights, step * count, count) for step in range(200 // count)]
    row = [each for step in steps for each in step]
    assert row == drawn(weights, 0, len(row))
    assert row == sorted(row, key=lambda each: ((each[1] + 0.5) / weights[each[0]], each[0]))
    for which in range(len(weights)):
        numbers = [number for each, number in row if each == which]
        assert numbers == list(range(len(numbers)))


def test_late_windows_of_a_row_are_as_the_whole_row_has_them():
    weights = [1000.0, 1.0, 1.0, 0.3]
    assert drawn(weights, 50_000, 3000) == drawn(weights, 0, 53_000)[50_000:]


@settings(max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 3))
def test_sets_that_weigh_as_much_as_they_have_are_one(sizes, epoch):
    order = epoch_order(3, epoch, tuple((size, float(size)) for size in sizes))
    assert sorted(number for number, _ in order) == list(range(sum(sizes))) and {turn for _, turn in order} == {epoch}


def test_one_set_has_the_order_that_it_always_had():
    order = epoch_order(5, 2, ((7, 1.0),))
    assert [number for number, _ in order] == np.random.default_rng([5, 2]).permutation(7).tolist()


def test_a_heavy_set_comes_again_within_an_epoch_under_a_new_pass():
    order = epoch_order(0, 0, ((2, 3.0), (6, 1.0)))
    assert Counter(number < 2 for number, _ in order) == {True: 6, False: 2}
    assert sorted(each for each in order if each[0] < 2) == [(i, turn) for i in range(2) for turn in range(3)]


def test_a_step_draws_from_each_set_by_weight_with_a_curriculum_and_without():
    ids = [f"a{i}" for i in range(3)] + [f"b{i}" for i in range(30)]
    for chance in (1.0, 0.3):
        curriculum = Curriculum(ids, 1, chance, BAND, [(3, 3.0), (30, 1.0)])
        steps = [curriculum.draw(step, 4) for step in range(1, 9)]
        assert all(sum(number < 3 for number in numbers) == 3 for numbers in steps)
        assert len({number for numbers in steps for number in numbers if number >= 3}) > 4
        assert steps[5] == Curriculum(ids, 1, chance, BAND, [(3, 3.0), (30, 1.0)]).draw(6, 4)


def test_a_refill_takes_tasks_of_all_sets_by_weight():
    ids = [f"a{i}" for i in range(100)] + [f"b{i}" for i in range(100)]
    curriculum = Curriculum(ids, 1, 1.0, BAND, [(100, 9.0), (100, 1.0)])
    found = [number for step in range(20) for number in curriculum.refill(step, 1, 10, {"a0"})]
    assert 0 not in found and 0.8 < np.mean([number < 100 for number in found]) < 0.98
