"""Masks of the log-likelihood estimators, and the draw of some of them: what they add up to in the mean."""

import itertools
from math import comb

import numpy as np
import pytest

from configs.schema import TrainingConfig
from train.algorithm.masking import (
    METHODS,
    Canvas,
    NoisyCopy,
    ar_order,
    elbo,
    inclusion_chances,
    mean_field,
    sample_copies,
    with_replaced,
)

BLOCK = np.arange(12) // 4
TRAINED = np.arange(12) < 10


def canvas(full):
    step = np.array([1, 2, 1, 3, 4, 4, 5, 5, 7, 6, 6, 0])
    return canvas_of(step, TRAINED, np.zeros(12, dtype=np.int64) if full else BLOCK)


def canvas_of(step, trained, unit):
    return Canvas(np.arange(1, 13), step, trained, BLOCK, unit, mask_id=0)


def masked(copy):
    return copy.ids_C == 0


def units(full):
    return [np.flatnonzero(TRAINED)] if full else [np.flatnonzero(TRAINED & (b == BLOCK)) for b in range(3)]


class EveryDraw:
    """Random numbers that run through [0, 1) at even distances, so that a mean over them is an expectation."""

    def __init__(self, count):
        self.numbers = itertools.cycle((np.arange(count) + 0.5) / count)

    def random(self):
        return next(self.numbers)

    def permutation(self, places):
        return places


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("pairs", [1, 3])
def test_the_mean_of_elbo_masks_is_the_bound_itself(full, pairs):
    """A token's log-probability is made a function of how many are masked with it, f(n) = n^2: the bound of a unit of
    L positions is then sum_n (1 / n) n f(n)."""
    for places in units(full):
        trained = np.isin(np.arange(12), places)
        alone = canvas_of(trained.astype(int), trained, canvas(full).unit_C)
        draws = len(places) + 1
        total, rng = 0.0, EveryDraw(draws)
        for _ in range(draws):
            for copy in elbo(alone, TrainingConfig(mask_times_per_sample=pairs), rng):
                total += copy.weight * copy.trained_C.sum() ** 3 / draws
        assert total == pytest.approx(sum(n**2 for n in range(1, len(places) + 1)), rel=0.02)


def test_elbo_masks_are_pairs_that_train_every_position_once_and_pairs_that_spread_over_the_levels():
    rng, training = np.random.default_rng(1), TrainingConfig(mask_times_per_sample=4)
    for _ in range(50):
        copies = elbo(canvas(True), training, rng)
        for pair in range(4):
            halves = [copy for copy in copies if copy.round // 2 == pair]
            assert (sum(copy.trained_C.astype(int) for copy in halves) == TRAINED).all()
            first = next((copy.trained_C.sum() for copy in halves if copy.round % 2 == 0), 0)
            assert 11 * pair // 4 <= first <= 11 * (pair + 1) / 4
        assert all((masked(copy) == (copy.trained_C | ~TRAINED)).all() for copy in copies)


@pytest.mark.parametrize("full", [True, False])
def test_from_left_to_right_each_token_sees_exactly_those_before_it(full):
    copies = ar_order(canvas(full), TrainingConfig(), np.random.default_rng(0))
    assert [np.flatnonzero(copy.trained_C).tolist() for copy in copies] == [[i] for i in range(10)]
    for place, copy in enumerate(copies):
        unit = np.arange(12) if full else np.flatnonzero(place // 4 == BLOCK)
        assert np.flatnonzero(masked(copy)).tolist() == [i for i in unit if i >= place]
        assert copy.unit == (0 if full else place // 4) and copy.round == (place if full else place % 4)


@pytest.mark.parametrize("full", [True, False])
def test_mean_field_masks_all_of_each_unit_once(full):
    copies = mean_field(canvas(full), TrainingConfig(), np.random.default_rng(0))
    assert len(copies) == (1 if full else 3)
    assert sum(masked(copy).astype(int) for copy in copies).tolist() == [1] * 12
    assert (sum(copy.trained_C.astype(int) for copy in copies) == TRAINED).all()


@pytest.mark.parametrize("name", ["elbo", "ar_order", "mean_field"])
def test_estimators_are_of_rl_and_not_as_sampled(name):
    assert METHODS[name].rl and METHODS[name].sft == (name == "elbo") and not METHODS[name].as_sampled


def copies_of(count):
    masks = np.eye(count, dtype=bool)
    return [NoisyCopy(0, i, mask * 0, mask * 1, mask) for i, mask in enumerate(masks)]


@pytest.mark.parametrize("score", [[1.0, 2.0, 0.5, 8.0, 0.0, 30.0], [0.0] * 6, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_copies_drawn_by_their_scores_are_unbiased(score, count):
    chances = inclusion_chances(np.array(score), count)
    assert chances.sum() == pytest.approx(count) and chances.max() <= 1.0 and chances.min() > 0.99 * count / 12
    rng, mean, draws = EveryDraw(300), np.zeros(6), 300
    for _ in range(draws):
        drawn = sample_copies(copies_of(6), count, rng, np.array(score))
        assert len({copy.round for copy in drawn}) == len(drawn) == count
        for copy in drawn:
            mean[copy.round] += copy.weight / draws
    assert mean == pytest.approx(np.ones(6), abs=0.05)
    assert max(score) < 20 or chances[5] > 2 * chances[4]


def test_equal_chances_draw_each_subset_alike():
    rng, seen = np.random.default_rng(0), {}
    for _ in range(600):
        drawn = sample_copies(copies_of(5), 2, rng)
        assert all(copy.weight == 2.5 for copy in drawn)
        seen[tuple(copy.round for copy in drawn)] = seen.get(tuple(copy.round for copy in drawn), 0) + 1
    assert len(seen) == comb(5, 2) and min(seen.values()) > 30
    every = copies_of(3)
    assert sample_copies(every, 3, rng, np.ones(3)) is every and sample_copies(every, 5, rng) is every


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("name", ["coupled", "random_masking", "semi-ar", "trace"])
def test_replaced_tokens_are_other_ids_that_are_to_be_put_right(full, name):
    """Inside the blocks that a copy trains, of what it does not mask, its share; what it masked is as it was. What is
    left right is trained too."""
    given, training = canvas(full), TrainingConfig(mask_times_per_sample=40)
    seen, replaced, clean = set(), 0, 0
    for copy in with_replaced(METHODS[name], 0.25, 14, unmasked=0.0)(given, training, np.random.default_rng(0)):
        wrong_C = (copy.ids_C != given.ids_C) & ~masked(copy)
        inside_C = (given.unit_C == copy.unit) & np.isin(BLOCK, BLOCK[copy.trained_C])
        assert np.array_equal(copy.target_C, given.ids_C) and not (wrong_C & ~(inside_C & TRAINED)).any()
        in_sight_C = inside_C & TRAINED & ~masked(copy)
        assert (in_sight_C <= copy.trained_C).all() and (copy.trained_C <= masked(copy) | in_sight_C).all()
        seen |= set(copy.ids_C[wrong_C].tolist())
        replaced, clean = replaced + wrong_C.sum(), clean + (inside_C & TRAINED & ~masked(copy)).sum()
    assert seen <= set(range(1, 14)) and replaced > 0
    if name != "trace":
        assert len(seen) > 8 and abs(replaced / clean - 0.25) < 0.1


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("name", ["coupled", "random_masking", "semi-ar"])
def test_copies_that_mask_nothing_show_what_their_blocks_hold_with_noise_alone(full, name):
    """The state of a block's last steps, in which what was written can only be put right."""
    given, training = canvas(full), TrainingConfig(mask_times_per_sample=40, loss_weight="inverse_level")
    copies = with_replaced(METHODS[name], 0.25, 14, unmasked=0.5)(given, training, np.random.default_rng(0))
    unmasked = [copy for copy in copies if not (masked(copy) & copy.trained_C).any()]
    assert 0.3 < len(unmasked) / len(copies) < 0.7
    replaced, trained = 0, 0
    for copy in unmasked:
        inside_C = (given.unit_C == copy.unit) & np.isin(BLOCK, BLOCK[copy.trained_C])
        assert np.array_equal(copy.trained_C, inside_C & TRAINED) and copy.weight == 1.0
        replaced += (copy.ids_C != given.ids_C)[copy.trained_C].sum()
        trained += copy.trained_C.sum()
    assert abs(replaced / trained - 0.25) < 0.1


def test_without_chance_or_in_ar_nothing_is_replaced():
    given, training = canvas(full=True), TrainingConfig()
    for name, share in (("ar", 0.9), ("coupled", 0.0)):
        want = METHODS[name](given, training, np.random.default_rng(0))
        got = with_replaced(METHODS[name], share, 14, unmasked=1.0 if name == "ar" else 0.0)(
            given, training, np.random.default_rng(0)
        )
        assert [copy.ids_C.tolist() for copy in got][:1] == [copy.ids_C.tolist() for copy in want][:1]
