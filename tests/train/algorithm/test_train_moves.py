"""Replay of trajectories in which edits delete and insert tokens: the trainer sees every choice in the state in which
it was made."""

import functools

import numpy as np
import pytest
import torch
from helpers import random_prompts, tiny_model
from trainees import STOPS, make_policy

from sample import Sampler, SamplingConfig
from train.setup.step_judge import at_events

DELETE, INSERT = 40, 41
SAMPLED = {
    "blocks of 4": {"edit_threshold": 0.3, "max_post_steps": 5, "block_size": 4},
    "blocks of 8": {"edit_threshold": 0.0, "max_post_steps": 3, "block_size": 8},
    "greedy": {"edit_threshold": 0.0, "block_size": 4, "temperature": 0.0},
}


@functools.cache
def moving_model():
    """LLaDA2.2 with likely DELETE and INSERT."""
    model = tiny_model("llada2", expert_capacity=3, delete_token_id=DELETE, split_token_id=INSERT)
    with torch.no_grad():
        model.lm_head.weight[[DELETE, INSERT]] *= 2.0
    return model


@functools.cache
def sampled(name):
    settings = {"max_new_tokens": 11, "threshold": 0.5, "temperature": 1.0, "stop_ids": STOPS} | SAMPLED[name]
    sampling = SamplingConfig(**settings)
    return sampling, Sampler(moving_model(), sampling).generate(random_prompts([1, 2, 3, 5, 8, 13], seed=2), n=2)


@pytest.mark.parametrize(
    "name", [name if name == "blocks of 4" else pytest.param(name, marks=pytest.mark.slow) for name in SAMPLED]
)
def test_every_choice_is_trained_once_at_the_log_probability_that_it_had(name):
    sampling, rollouts = sampled(name)
    policy = make_policy(moving_model(), sampling)
    batch = policy.batch(rollouts, [1.0] * len(rollouts))
    assert not policy.replay.recomputes
    logps = policy.updater.outputs(batch.samples, range(len(batch.samples)))
    said = []
    for rollout, sample, logp, given in zip(rollouts, batch.samples, logps, batch.logp_rollout, strict=True):
        events = rollout.events
        pairs = enumerate(zip(events.action, events.place, strict=True))
        mine = [i for i, (action, place) in pairs if action >= 0 and place < rollout.num_response_tokens]
        assert sorted(sample.event_index.tolist()) == mine
        assert sample.targets.tolist() == np.array(events.action)[sample.event_index].tolist()
        assert logp == pytest.approx(given, abs=1e-5)
        said += sample.targets.tolist()
    assert min(said.count(DELETE), said.count(INSERT)) > 2


def test_choices_that_stand_are_those_of_the_answer_wherever_they_were_made():
    sampling, rollouts = sampled("blocks of 4")
    policy = make_policy(moving_model(), sampling, trained_events="last")
    batch = policy.batch(rollouts, [1.0] * len(rollouts))
    for rollout, sample in zip(rollouts, batch.samples, strict=True):
        stands = rollout.events.standing(len(rollout.canvas_ids))[: rollout.num_response_tokens]
        assert np.array(rollout.events.action)[stands].tolist() == rollout.token_ids
        inside = [i for i in stands.tolist() if rollout.events.place[i] < rollout.num_response_tokens]
        assert {*inside} <= {*sample.event_index.tolist()}
        assert not {DELETE, INSERT} & {*sample.targets.tolist()}


def test_a_tokens_reward_goes_to_the_choice_that_made_it():
    _, rollouts = sampled("blocks of 4")
    for rollout in rollouts:
        rewards = [float(place + 1) for place in range(rollout.num_response_tokens)]
        given, stands = at_events(rewards, rollout), rollout.events.standing(len(rollout.canvas_ids))
        assert [given[stands[place]] for place in range(len(rewards))] == rewards and sum(map(bool, given)) == len(
            rewards
        )


def test_steps_between_which_tokens_move_are_not_merged():
    sampling, rollouts = sampled("blocks of 4")
    with pytest.raises(ValueError, match=r"training.shrink=2: edits of a rollout delete and insert.*shrink=1"):
        make_policy(moving_model(), sampling, shrink=2).batch(rollouts, [1.0] * len(rollouts))
