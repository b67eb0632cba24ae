import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.algorithm.advantages import (
    ADVANTAGES,
    Speed,
    centered,
    group_advantage,
    group_advantages,
    leave_one_out,
    rank,
    wd1,
    zscore,
)

rewards_of_a_group = st.lists(st.floats(-5, 5), min_size=2, max_size=12)


@given(rewards_of_a_group)
def test_zscore_has_mean_0_and_spread_1(rewards):
    values = np.array(rewards)
    advantages = zscore(values)
    if values.std() < 1e-8:
        assert (advantages == 0).all()
    else:
        assert advantages.mean() == pytest.approx(0.0, abs=1e-6) and advantages.std() == pytest.approx(1.0, abs=1e-6)
        assert advantages == pytest.approx((values - np.mean(rewards)) / np.std(rewards))


@given(rewards_of_a_group)
def test_centered_keeps_the_scale(rewards):
    advantages = centered(np.array(rewards))
    assert advantages == pytest.approx([r - np.mean(rewards) for r in rewards])


def test_a_group_by_hand():
    credit = group_advantages([1.0, 0.0, 0.0, 0.0], 4, advantage=zscore)
    assert credit.values == pytest.approx([3**0.5, *[-(3**-0.5)] * 3]) and not credit.dropped
    credit = group_advantages([1.0, 0.0, 0.0, 0.0], 4, advantage=centered)
    assert credit.values == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_groups_do_not_see_each_other():
    alone = group_advantages([3.0, 1.0, 2.0], 3, advantage=zscore).values
    credit = group_advantages([3.0, 1.0, 2.0, 100.0, 0.0, 50.0], 3, advantage=zscore)
    assert credit.values[:3] == alone
    assert credit.values[3:] == pytest.approx([(3 / 2) ** 0.5, -((3 / 2) ** 0.5), 0.0])


def test_a_reward_of_none_leaves_only_its_response_out():
    credit = group_advantages([1.0, None, 0.0, 0.5], 4, advantage=centered)
    assert credit.values == pytest.approx([0.5, None, -0.5, 0.0]) and not credit.dropped


def test_a_response_not_kept_is_left_out_of_mean_and_update():
    credit = group_advantages([1.0, 0.0, 0.5], 3, advantage=centered, keep=[True, True, False])
    assert credit.values == pytest.approx([0.5, -0.5, None])


@pytest.mark.parametrize(
    ("rewards", "why"),
    [
        ([None, None, None], "unrewarded"),
        ([1.0, None, None], "small"),
        ([0.0, 0.0, 0.0], "equal"),
        ([0.3, 0.3, 0.3], "equal"),
        ([1.0, 1.0, None], "equal"),
        ([0.1 + 0.2, 0.3, 0.3], "equal"),
        ([1.0, 0.0, 0.0], "accuracy"),
        ([0.0, 1.0, None], None),
        ([0.1, 0.0, 0.0], None),
    ],
)
def test_why_a_group_is_left_out(rewards, why):
    credit = group_advantages(rewards, 3, advantage=zscore, accuracy_band=(0.4, 0.6))
    assert dict(credit.dropped) == ({why: 1} if why else {})
    assert all((a is None) == (why is not None or r is None) for a, r in zip(credit.values, rewards, strict=True))


def test_the_accuracy_band_includes_its_ends():
    rewards = [1.0, 0.0, 0.0, 0.0, 0.0] + [1.0, 1.0, 1.0, 1.0, 0.0]
    assert not group_advantages(rewards, 5, advantage=zscore, accuracy_band=(0.2, 0.8)).dropped
    inner = group_advantages(rewards, 5, advantage=zscore, accuracy_band=(0.21, 0.79))
    assert inner.dropped == {"accuracy": 2} and set(inner.values) == {None}


def test_the_accuracy_band_is_for_rewards_of_0_and_1_alone():
    """GradedRollouts rewards have no accuracy: only equal ones are dropped."""
    credit = group_advantages([0.0, 0.01, 0.0, 0.0], 4, advantage=zscore, accuracy_band=(0.2, 0.8))
    assert not credit.dropped


def test_a_group_of_one_teaches_nothing():
    credit = group_advantages([1.0, 0.0], 1, advantage=zscore)
    assert credit.values == [None, None] and credit.dropped == {"small": 2}


@given(st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0])), min_size=12, max_size=12))
def test_every_group_is_used_or_dropped(rewards):
    credit = group_advantages(rewards, 4, advantage=zscore, accuracy_band=(0.3, 0.7))
    used = 0
    for first in range(0, 12, 4):
        got = [a for a in credit.values[first : first + 4] if a is not None]
        used += bool(got)
        assert not got or (len(got) >= 2 and sum(got) == pytest.approx(0.0, abs=1e-9))
    assert used + sum(credit.dropped.values()) == 3


def of_kinds(rows):
    """Sums of kinds of reward, and the kinds by name."""
    parts = [{"first": row[0], "second": row[1]} if row else {} for row in rows]
    return {"rewards": [sum(row) if row else None for row in rows], "parts": parts}


def test_each_kind_of_reward_goes_through_and_then_they_are_summed():
    rewards = [(1.0, 10.0), (0.0, 30.0), (0.0, 20.0), (0.5, 20.0)]
    first, second = (zscore(np.array(column)) for column in zip(*rewards, strict=True))
    want = (first + second).tolist()
    assert group_advantages(**of_kinds(rewards), group_size=4, advantage=zscore).values == pytest.approx(want)
    assert group_advantage(np.array(rewards), zscore) == pytest.approx(want)
    assert want != pytest.approx(zscore(np.array(rewards).sum(1)).tolist())


def test_a_group_is_equal_only_where_it_is_in_every_kind_of_reward():
    rewards = [(1.0, 0.0), (1.0, 1.0), None, (1.0, 0.0)] + [(1.0, 2.0)] * 4
    credit = group_advantages(**of_kinds(rewards), group_size=4, advantage=zscore, accuracy_band=(0.9, 1.0))
    assert credit.values[4:] == [None] * 4 and credit.dropped == {"equal": 1}
    assert credit.values[2] is None and credit.values[1] == pytest.approx(2**0.5)


def test_a_bonus_is_added_to_the_first_kind_of_reward_that_differs():
    given = of_kinds([(1.0, 5.0), (0.0, 7.0), (1.0, 5.0), (1.0, 7.0)])
    credit = group_advantages(**given, group_size=2, advantage=centered, bonus=[0.5, 0.0] * 2)
    assert credit.values == pytest.approx([0.75 - 1.0, -0.75 + 1.0, -0.75, 0.75])


def test_kinds_of_reward_are_those_of_the_group_and_speed_goes_by_the_reward():
    """A group whose set has another kind than the step's first: a small bonus stays small, and speed is trained."""
    rewards = [1.5, 0.5] * 2 + [1.0, 1.0, 0.0, 0.0] + [1.0] * 4
    parts = [{"x": 1.0, "y": 0.5}, {"x": 0.0, "y": 0.5}] * 2 + [{"": reward} for reward in rewards[4:]]
    given = {"rewards": rewards, "parts": parts, "group_size": 4}
    fast = [1.0, 3.0, 1.0, 1.0]
    credit = group_advantages(**given, bonus=[0.001 * number for number in fast] * 3)
    assert credit.values[4:8] == pytest.approx([1.0, 1.0, -1.0, -1.0], abs=0.01) and credit.dropped == {"equal": 1}
    credit = group_advantages(**given, speed=Speed(fast * 3))
    assert credit.values[4:8] == pytest.approx((zscore(np.array(rewards[4:8])) + zscore(np.array(fast))).tolist())
    assert credit.values[8:] == pytest.approx(zscore(np.array(fast)).tolist()) and not credit.dropped
    credit = group_advantages(**given, accuracy_band=(0.6, 1.0))
    assert credit.dropped == {"accuracy": 1, "equal": 1} and credit.values[0] == 1.0


def test_of_kinds_whose_first_is_zero_the_reward_says_what_is_right():
    given = of_kinds([(0.0, 1.0), (0.0, 0.0)])
    assert group_advantages(**given, group_size=2, speed=Speed([1.0, 2.0])).values == pytest.approx([0.0, 0.0])
    assert group_advantages(**of_kinds([None, (1.0, 2.0), None, None]), group_size=2).dropped == {
        "small": 1,
        "unrewarded": 1,
    }


@pytest.mark.parametrize("kind", ["advantage", "reward"])
def test_credit_says_what_it_is(kind):
    assert group_advantages([1.0, 0.0], 2, kind=kind).kind == kind


@pytest.mark.parametrize(
    ("advantage", "says"),
    [
        (lambda r: r[:1], r"<lambda> returned float64 numbers of shape \(1,\) for rewards of shape \(2,\)"),
        (lambda r: r * np.nan, r"<lambda> returned \[nan, nan\] for the rewards \[1.0, 0.0\]: not finite"),
        (lambda r: np.array(["a", "b"]), "<lambda> returned <U1"),
    ],
)
def test_an_advantage_of_another_shape_or_not_finite_is_an_error(advantage, says):
    with pytest.raises(ValueError, match=says):
        group_advantages([1.0, 0.0], 2, advantage=advantage)


def test_an_advantage_may_write_into_what_it_is_given():
    def in_place(reward_G):
        reward_G -= reward_G.mean()
        return reward_G

    rewards = np.array([[1.0, 2.0], [0.0, 4.0]])
    assert group_advantage(rewards, in_place).tolist() == [-0.5, 0.5] and rewards.tolist() == [[1.0, 2.0], [0.0, 4.0]]


def test_a_kind_of_reward_without_a_difference_is_worth_nothing_and_reaches_no_advantage():
    def bare_zscore(reward_G):
        return (reward_G - reward_G.mean()) / reward_G.std()

    speed = Speed([2.0, 1.0, 3.0, 3.0])
    credit = group_advantages([1.0, 1.0, 0.5, 1.0], 2, advantage=bare_zscore, speed=speed)
    assert credit.values == pytest.approx([1.0, -1.0, -1.0, 1.0])


@given(rewards_of_a_group)
def test_leave_one_out_is_against_the_mean_of_the_others(rewards):
    others = [np.mean(rewards[:i] + rewards[i + 1 :]) for i in range(len(rewards))]
    assert leave_one_out(np.array(rewards)) == pytest.approx([r - m for r, m in zip(rewards, others, strict=True)])


@given(rewards_of_a_group)
def test_rank_counts_order_alone(rewards):
    places = [sum(other < r for other in rewards) + sum(other <= r for other in rewards) + 1 for r in rewards]
    want = [(place - len(rewards) - 1) / len(rewards) for place in places]  # twice the mean place, from 1
    assert rank(np.array(rewards)) == pytest.approx(want)
    assert rank(1024.0 * np.array(rewards)) == pytest.approx(want) and sum(want) == pytest.approx(0.0)


@given(rewards_of_a_group, st.floats(0.0, 20.0))
def test_wd1_weighs_good_responses_against_bad_ones(rewards, psi):
    good = [np.exp(psi * (r - np.mean(rewards))) for r in rewards]
    bad = [np.exp(-psi * (r - np.mean(rewards))) for r in rewards]
    want = [len(rewards) * (g / sum(good) - b / sum(bad)) for g, b in zip(good, bad, strict=True)]
    assert wd1(np.array(rewards), psi=psi) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_equal_rewards_have_no_advantage(name):
    assert ADVANTAGES[name](np.full(5, 0.3)).tolist() == [0.0] * 5


# ---- speed as a goal of its own


def test_reward_and_speed_are_normalised_apart_and_a_group_that_is_all_right_trains_its_speed():
    speeds = [1.0, 2.0, 3.0, 4.0] * 3
    rewards = [1.0, 0.0, 0.0, 1.0] + [1.0] * 4 + [0.0] * 4
    credit = group_advantages(rewards, 4, speed=Speed(speeds, weight=0.5))
    fast = 0.5 * zscore(np.array(speeds[:4]))
    assert credit.values[:4] == pytest.approx((np.array([1.0, -1.0, -1.0, 1.0]) + fast).tolist())
    assert credit.values[4:8] == pytest.approx(fast.tolist())
    assert credit.values[8:] == [None] * 4 and credit.dropped == {"equal": 1}  # all wrong: haste is no goal


def test_without_an_advantage_of_its_own_a_group_that_is_all_right_teaches_nothing():
    credit = group_advantages([1.0] * 4, 4, bonus=[0.1, 0.2, 0.3, 0.4])
    assert credit.dropped == {"equal": 1}


def test_a_wrong_response_may_count_as_the_slowest():
    rewards, speeds = [1.0, 1.0, 0.0], [2.0, 3.0, 9.0]
    credit = group_advantages(rewards, 3, advantage=centered, speed=Speed(speeds, 1.0, of_right=True))
    want = np.array([1.0, 1.0, 0.0]) - 2 / 3 + np.array([2.0, 3.0, 2.0]) - 7 / 3
    assert credit.values == pytest.approx(want.tolist())


def test_groups_are_filtered_by_the_spread_of_speed_and_by_accuracy():
    rewards = [1.0, 0.0] * 2 + [0.0, 0.0] + [1.0, 1.0]
    speeds = [2.0, 2.005] + [2.0, 2.5] + [1.0, 3.0] + [4.0, 4.0]
    credit = group_advantages(rewards, 2, accuracy_band=(0.01, 1.0), speed=Speed(speeds, least_spread=0.01))
    assert credit.dropped == {"speed": 1, "equal": 2}
    assert [value is None for value in credit.values] == [True, True, False, False, True, True, True, True]


def test_speed_leaves_responses_without_a_reward_out():
    credit = group_advantages([1.0, None, 1.0], 3, advantage=centered, speed=Speed([1.0, 9.0, 3.0]))
    assert credit.values == pytest.approx([-1.0, None, 1.0])
    assert group_advantages([None, None], 2, speed=Speed([1.0, 2.0])).dropped == {"unrewarded": 1}


def test_whitened_advantages_have_mean_0_and_spread_1_over_the_step():
    rewards = [1.0, 0.0, 0.25, 0.5, None, 3.0]
    plain, white = (group_advantages(rewards, 3, advantage=centered, whiten=flag) for flag in (False, True))
    given = np.array([value for value in plain.values if value is not None])
    want = ((given - given.mean()) / given.std()).tolist()
    assert [value for value in white.values if value is not None] == pytest.approx(want)
    assert white.values[4] is None and group_advantages([None, None], 2, whiten=True).values == [None, None]


def test_kinds_of_reward_count_by_their_weights_whatever_their_scale():
    """GDPO: each kind's advantage in its group, then the weighted sum; a kind that is equal in a group adds nothing."""
    rewards = [(0.0, 500.0), (1.0, 100.0), (1.0, 300.0), (2.0, 7.0), (3.0, 7.0), (4.0, 7.0)]
    found = group_advantages(**of_kinds(rewards), group_size=3, advantage=zscore, weights={"second": 0.25})
    columns = np.array(rewards)
    for first in (0, 3):
        wanted = zscore(columns[first : first + 3, 0]) + 0.25 * zscore(columns[first : first + 3, 1])
        assert found.values[first : first + 3] == pytest.approx(wanted)
    assert not found.dropped
