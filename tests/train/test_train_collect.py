from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

import models
from configs.schema import Config, RewardConfig, RolloutConfig, TrainingConfig
from data.tasks import Task
from train.algorithm.advantages import Credit, zscore
from train.collect import Collector
from train.grading import Scores
from train.learner.rollout_log import GradedRollouts
from train.setup.prompts import Prompt
from train.setup.train_sets import TrainTasks


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


GOOD, SAME, NONE = [1.0, 0.0], [1.0, 1.0], [None, None]


class Draws:
    """A collector of three tasks a step and two responses each, whose sampler and reward are stood in for. of: names of
    the tasks of each draw, in order."""

    def __init__(self, monkeypatch, model, tasks, refill_draws, rewards):
        """rewards: of the two responses to a task, by number of the draw and place in it."""
        self.of, self.rewards = [], {}

        def sample(sampler, prompts, n, keys, advance):
            draw, names = len(self.of), list(dict.fromkeys(key[1] for key in keys))
            self.of.append(names)
            self.rewards |= {name: rewards(draw, place) for place, name in enumerate(names)}
            return [rollout_of(key) for key in keys]

        def scores(prompts, rollouts, model, config):
            given = [self.rewards[prompt.task.id][i] for prompt in prompts for i in range(2)]
            return Scores([""] * len(rollouts), given, {"reward/none_count": float(given.count(None))}, {})

        monkeypatch.setattr("train.collect.sample", sample)
        quiet = SimpleNamespace(
            timed=lambda name: nullcontext(), progress=lambda *_: nullcontext(SimpleNamespace(advance=None))
        )
        log = SimpleNamespace(take=lambda *_: None, put=lambda *_: None, pictures=SimpleNamespace(add=list))
        sampler = SimpleNamespace(model=model, keeps_slots=True, config=SimpleNamespace(block_size=4))
        rollout = RolloutConfig(num_task_per_step=3, num_response_per_task=2, refill_draws=refill_draws)
        prompts = [Prompt(Task(f"t{i}", "", None, {}), "", [5]) for i in range(tasks)]
        grading = SimpleNamespace(scores=scores, log=log)
        self.collector = Collector(
            Config(rollout=rollout), sampler, TrainTasks(prompts, [(tasks, 1.0)]), grading, quiet
        )

    def step(self):
        return self.collector.grade(self.collector.rollouts(self.collector.draw(1), 1))


def rollout_of(key):
    return SimpleNamespace(key=key, prompt_ids=[5], num_response_tokens=4, num_steps=2, finish_reason="stop")


@pytest.mark.parametrize(
    ("refill_draws", "tasks", "rewards", "groups"),
    [
        (0, 20, lambda draw, place: SAME, [3]),
        (1, 20, lambda draw, place: SAME, [3, 3]),
        (4, 20, lambda draw, place: SAME, [3, 3, 3, 3, 3]),
        (4, 20, lambda draw, place: GOOD, [3]),
        (4, 20, lambda draw, place: GOOD if draw else SAME, [3, 3]),
        (4, 20, lambda draw, place: SAME if place else GOOD, [3, 2, 1]),
        (4, 20, lambda draw, place: [0.0, 0.0] if draw < 2 else GOOD, [3, 3, 3]),
        (4, 8, lambda draw, place: SAME, [3, 3, 2]),
        (4, 20, lambda draw, place: NONE, [3]),
        (4, 20, lambda draw, place: [NONE, SAME, GOOD][place], [3, 1]),
    ],
    ids=["off", "one", "up", "good", "enough", "fewer", "wrong", "all-drawn", "unrewarded", "one-unrewarded"],
)
def test_a_step_draws_other_tasks_for_groups_that_teach_nothing(
    monkeypatch, sdar, refill_draws, tasks, rewards, groups
):
    """Until enough do, no task is left, or rollout.refill_draws draws are used up; none for groups without any reward,
    which the reward's failure left so."""
    draws = Draws(monkeypatch, sdar, tasks, refill_draws, rewards)
    graded = draws.step()
    assert [len(names) for names in draws.of] == groups
    every = [name for names in draws.of for name in names]
    assert len(set(every)) == len(every) == len(graded.rollouts) / 2
    assert [rollout.key for rollout in graded.rollouts] == [(1, name, i) for name in every for i in range(2)]
    assert graded.rewards == [reward for name in every for reward in draws.rewards[name]]
    teach = sum(draws.rewards[name] == GOOD for name in every)
    assert sum(value is not None for value in graded.credit.values) == 2 * teach
    assert graded.credit.dropped.total() == len(every) - teach
    assert graded.reward_stats["reward/none_count"] == graded.rewards.count(None)
