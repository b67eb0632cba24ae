"""The sets of tasks that a run samples, and what grades each of them."""

import pytest

from configs import load_config
from train.setup import rewards
from train.setup.eval_sets import eval_sets
from train.setup.train_sets import train_sets


@pytest.mark.parametrize("beside", [True, False])
def test_a_reward_of_a_sets_own_grades_it_alone_in_training_and_in_evaluations(monkeypatch, beside):
    asked = []
    monkeypatch.setattr(rewards, "build_reward", lambda reward, *_: asked.append(reward))
    own = "[{name: own.json, reward: '/mine.py:f', data_type: general}, other.json]"
    typed = [f"dataset.train_dataset={own}", f"evaluation.eval_dataset={own}", "reward.function=/all.py:g"]
    more = ["reward.weights={verifier: 2}", f"reward.beside_verifier={beside}"] if beside else []
    config = load_config(["config=configs/rl_tiny.yaml", *typed, *more])
    for one in (train_sets(config)[0], eval_sets(config, "rl")[0], train_sets(config)[1]):
        one.reward_of(config)
    trained, tested, other = asked
    assert trained == tested and trained.function == "/mine.py:f"
    assert not trained.beside_verifier and trained.weights == {}
    assert other == config.reward
