from train.grading import Scores


def test_the_scores_of_a_refilled_step_are_those_of_all_its_rollouts():
    """Counts add up, means are taken anew, and each part of a reward has one number a rollout."""
    first = Scores(["a", "b"], [1.0, None], {"reward/none_count": 1.0, "reward/x_mean": 1.0}, {"x": [1.0, None]})
    joined = first.joined(Scores(["c"], [3.0], {"reward/none_count": 0.0, "reward/x_mean": 3.0}, {"x": [3.0]}))
    assert (joined.texts, joined.rewards) == (["a", "b", "c"], [1.0, None, 3.0])
    assert joined.stats == {"reward/none_count": 1.0, "reward/x_mean": 2.0} and joined.parts == {"x": [1.0, None, 3.0]}


def test_scores_of_two_sets_stand_in_the_order_of_their_rollouts():
    """A part that one set's reward lacks is None there; the step's means are of those that have it."""
    one = Scores(["a", "c"], [3.0, 1.0], {"reward/none_count": 1.0}, {"x": [3.0, 1.0], "y": [0.0, 0.0]})
    found = one.joined(Scores(["b"], [7.0], {"reward/none_count": 2.0}, {})).ordered([0, 2, 1])
    assert found.texts == ["a", "b", "c"] and found.rewards == [3.0, 7.0, 1.0]
    assert found.parts == {"x": [3.0, None, 1.0], "y": [0.0, None, 0.0]}
    assert found.stats == {"reward/none_count": 3.0, "reward/x_mean": 2.0, "reward/y_mean": 0.0}
    assert found.columns() == {"x": [3.0, 0.0, 1.0], "y": [0.0, 0.0, 0.0], "": [0.0, 7.0, 0.0]}
