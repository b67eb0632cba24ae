from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import models
from configs.schema import Config, RewardConfig, TrainingConfig
from train.algorithm.advantages import Credit, zscore
from train.collect import Collector
from train.grading import Scores
from train.learner.rollout_log import GradedRollouts


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
    assert found.of_each() == [{"x": 3.0, "y": 0.0}, {"": 7.0}, {"x": 1.0, "y": 0.0}]


def test_normalised_parts_of_two_sets_and_speed_are_credited_each_set_by_its_own():
    rollouts = [
        SimpleNamespace(num_response_tokens=tokens, num_steps=1, finish_reason="stop") for tokens in [1, 3, 1, 1] * 2
    ]
    summed = Scores([""] * 4, [1.5, 0.5] * 2, {}, {"x": [1.0, 0.0] * 2, "y": [0.5] * 4})
    scores = summed.joined(Scores([""] * 4, [1.0, 1.0, 0.0, 0.0], {}, {}))
    collector = Collector.__new__(Collector)
    collector.config = Config(
        reward=RewardConfig(combine="normalise", speed_weight=0.001, weights={"x": 0.5}), training=TrainingConfig()
    )
    collector.group_size, collector.taught, collector.advantage = 4, False, zscore
    values = collector._credit(rollouts, scores).values
    assert values == pytest.approx([0.5, -0.5, 0.5, -0.5, 1.0, 1.0, -1.0, -1.0], abs=0.01)


def test_rollouts_of_an_interrupted_run_whose_pictures_are_gone_are_left_out_of_training():
    """Those of a refill may be; a step's own prompts without their pictures are not taken from disk at all."""
    seen = models.Prompt([-200, 5], pictures=[models.Picture([-200], torch.ones(1, 2))])
    collector = Collector.__new__(Collector)
    collector.prompts, collector._shown = [], {"kept": seen}
    collector._seen = lambda prompts: prompts
    rollouts = [
        SimpleNamespace(key=(1, task, 0), prompt_ids=ids)
        for task, ids in (("kept", [-200, 5]), ("gone", [-200, 5]), ("text", [4, 5]))
    ]
    graded = GradedRollouts(rollouts, [1.0, 1.0, 0.0], Credit([0.5, 0.5, -0.5], Counter()), {}, 1.0)
    assert collector._still_shown(graded).credit.values == [0.5, None, -0.5]
    assert collector.shown(rollouts) == {(1, "kept", 0): seen}
