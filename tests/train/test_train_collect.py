from train.grading import Scores


def test_the_scores_of_a_refilled_step_are_those_of_all_its_rollouts():
    """Counts add up, means are taken anew, and each part of a reward has one number a rollout."""
    first = Scores(["a", "b"], [1.0, None], {"reward/none_count": 1.0, "reward/x_mean": 1.0}, {"x": [1.0, None]})
    joined = first.joined(Scores(["c"], [3.0], {"reward/none_count": 0.0, "reward/x_mean": 3.0}, {"x": [3.0]}))
    assert (joined.texts, joined.rewards) == (["a", "b", "c"], [1.0, None, 3.0])
    assert joined.stats == {"reward/none_count": 1.0, "reward/x_mean": 2.0} and joined.parts == {"x": [1.0, None, 3.0]}
