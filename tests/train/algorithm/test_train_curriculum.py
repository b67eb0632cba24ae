"""Which questions a step draws: passes over the data, or fewer of those that taught nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.algorithm.advantages import centered, group_advantages
from train.algorithm.curriculum import Curriculum

BAND = (0.2, 0.8)


def curriculum(total, chance=1.0, seed=0):
    return Curriculum([f"t{i}" for i in range(total)], seed, chance, BAND)


@given(st.integers(1, 9), st.integers(1, 20), st.integers(0, 3))
def test_without_a_curriculum_every_question_comes_once_a_pass(total, count, seed):
    drawn = [i for step in range(1, 2 * total + 1) for i in curriculum(total, seed=seed).draw(step, count)]
    for start in range(0, len(drawn) - total + 1, total):
        assert sorted(drawn[start : start + total]) == list(range(total))


@given(st.integers(1, 9), st.integers(1, 20), st.integers(0, 3))
def test_with_one_a_step_repeats_no_question_before_all_came(total, count, seed):
    drawn = curriculum(total, chance=0.1, seed=seed).draw(1, count)
    assert len(drawn) == count
    for start in range(0, count, total):
        part = drawn[start : start + total]
        assert len(set(part)) == len(part)


def test_questions_outside_the_band_are_drawn_less():
    """Ten of twenty are always solved; at a chance of 0.1 one draw in eleven is one of them."""
    one = curriculum(20, chance=0.1)
    one.record([f"t{i}" for i in range(10)], [1.0, 1.0] * 10, group_size=2)
    one.record([f"t{i}" for i in range(10, 15)], [0.0, 1.0] * 5, group_size=2)
    first = [one.draw(step, 1)[0] for step in range(1, 2001)]
    share = np.mean(np.array(first) < 10)
    assert share == pytest.approx(1 / 11, abs=0.02)


def test_a_question_comes_back_when_its_group_is_in_the_band_again():
    one = curriculum(2, chance=1e-9)
    one.record(["t0"], [0.0, 0.0], group_size=2)
    assert {one.draw(step, 1)[0] for step in range(1, 50)} == {1}
    one.record(["t0"], [0.0, None], group_size=2)
    assert {one.draw(step, 1)[0] for step in range(1, 50)} == {1}
    one.record(["t0"], [0.0, 1.0], group_size=2)
    assert {one.draw(step, 1)[0] for step in range(1, 50)} == {0, 1}


def test_draws_are_resumed():
    one, other = curriculum(30, chance=0.2), curriculum(30, chance=0.2)
    one.record([f"t{i}" for i in range(9)], [1.0] * 9, group_size=1)
    assert one.draw(3, 8) != other.draw(3, 8)
    other.load_state_dict(one.state_dict())
    assert one.draw(3, 8) == other.draw(3, 8)


def test_a_bonus_moves_advantages_and_not_what_is_dropped():
    rewards = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    bonus = [0.5, 0.1, 0.0, 0.0, 0.9, 0.1, 0.5, 0.0]
    credit = group_advantages(rewards, 4, advantage=centered, accuracy_band=(0.2, 0.8), bonus=bonus)
    assert credit.dropped == {"equal": 1}
    assert credit.values[:4] == pytest.approx([0.85, 0.45, -0.65, -0.65])


@given(st.integers(1, 12), st.integers(0, 9), st.integers(0, 5), st.sampled_from([1.0, 0.1]))
def test_a_step_is_refilled_with_tasks_that_it_has_not_taken(total, count, first, chance):
    one = curriculum(total, chance=chance)
    taken = [f"t{i}" for i in range(min(first, total))]
    drawn = one.refill(3, 1, count, taken)
    assert len(drawn) == len(set(drawn)) == min(count, total - len(taken))
    assert not {f"t{i}" for i in drawn} & set(taken) and one.refill(3, 1, count, taken) == drawn


def test_every_refill_of_a_step_is_another_draw():
    one = curriculum(50)
    assert len({tuple(one.refill(step, draw, 9, ())) for step in (1, 2) for draw in (1, 2)}) == 4
