"""A policy that is saved between two steps goes on as if it had not been, under every built-in objective."""

import pytest
import torch
from helpers import thinned, tiny_model
from trainees import assert_same_weights, make_config, policy_of, sampled, shifted, weights_of, without_speed

from models import load_model
from sample import SamplingConfig
from train.algorithm.objectives import OBJECTIVES
from train.distributed.accelerator import make_accelerator
from train.learner.checkpoint import RL, Contents, read_state, save_checkpoint

ADVANTAGES = [1.0, -1.0, 0.5, -0.5]
TRAINING = {"nll_weight": 0.1, "num_train_epochs": 2, "rows_per_update": 4, "logp_old": "recompute"}


@pytest.fixture(scope="module")
def steps(sdar):
    """The rollouts of two steps: two groups of two each, of a policy that has moved since."""
    return {step: shifted(sampled(sdar, [5, 3], n=2, seed=step), 0.4, seed=step) for step in (1, 2)}


def policy_with(model, objective):
    """New objects around a model; the reference is made anew as well."""
    training = TRAINING | {"objective": objective}
    config = make_config(
        training=training,
        experiment={"total_step": 4},
        rollout={"num_response_per_task": 2},
        lr_scheduler={"scheduler": "linear", "params": {"warmup_steps": 0, "min_lr_scale": 0.1}},
    )
    accelerator = make_accelerator("no", torch.device("cpu"))
    policy = policy_of(config, model, accelerator, SamplingConfig(max_new_tokens=16))
    if policy.objective.needs.teacher:
        policy.reference = tiny_model("sdar", seed=1)
    return policy


def trained(policy, rollouts, step):
    rewards = [max(0.0, number) for number in ADVANTAGES]
    return without_speed(policy.train(policy.batch(rollouts, ADVANTAGES, rewards=rewards), step).metrics)


def assert_same_state(got, want):
    """Of nested dicts and lists, bit for bit."""
    assert type(got) is type(want)
    if isinstance(want, dict | list | tuple):
        assert len(got) == len(want)
        for key in want if isinstance(want, dict) else range(len(want)):
            assert_same_state(got[key], want[key])
    elif torch.is_tensor(want):
        assert torch.equal(got, want)
    else:
        assert got == want


@pytest.mark.parametrize("objective", thinned([*OBJECTIVES], len(OBJECTIVES) - 1))
def test_a_step_after_a_checkpoint_is_the_step_without_one(tmp_path, steps, objective):
    straight, first = (policy_with(tiny_model("sdar"), objective) for _ in range(2))
    before = trained(straight, steps[1], 1)
    assert trained(first, steps[1], 1) == before and before["updates"] > 2
    path = save_checkpoint(tmp_path, 1, Contents(RL, first.updater.model, {"updater": first.updater.state_dict()}))
    after, saved = trained(straight, steps[2], 2), weights_of(first.updater.model)
    resumed = policy_with(load_model(path), objective)
    resumed.updater.load_state_dict(read_state(path)["updater"])
    assert_same_weights(weights_of(resumed.updater.model), saved)
    assert trained(resumed, steps[2], 2) == after and after["learning_rate"] != before["learning_rate"]
    assert_same_weights(weights_of(resumed.updater.model), weights_of(straight.updater.model))
    assert_same_state(resumed.updater.state_dict(), straight.updater.state_dict())
    moved = weights_of(straight.updater.model)
    assert any(not torch.equal(moved[name], saved[name]) for name in saved)
