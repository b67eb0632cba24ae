"""A user's objective inside a run, after it has passed the trial on made-up tokens."""

import math
from dataclasses import replace

import pytest
from helpers import tiny_model
from trainees import assert_same_weights, make_policy, sampled, shifted, weights_of

from train.setup.doors import method_of

OWN = """
import torch


def breaks_late(batch, params):
    loss = -(batch.weight * batch.advantage * batch.logp).sum()
    return loss * (float("nan") if batch.advantage.max() > 100 else 1.0), {}


def right_ones(batch, params):
    right = batch.reward > 0
    if not right.any():
        return torch.tensor(0.0), {}
    return -(batch.weight * right * batch.logp).sum(), {}


def right_ones_by_weight(batch, params):
    return -(batch.weight * (batch.reward > 0) * batch.logp).sum(), {}
"""
REWARDS = [1.0, 0.0, 1.0, 0.0]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    return path


def trained(own, name, credit=(1.0, -1.0, 0.5, -0.5), **training):
    model = tiny_model("sdar")
    policy = make_policy(model, objective=f"{own}:{name}", **training)
    rollouts = sampled(model, [5, 8, 3, 6])
    metrics = policy.train(policy.batch(rollouts, credit, rewards=REWARDS), 1).metrics
    return metrics, weights_of(model)


def test_a_loss_that_is_not_finite_is_a_skipped_update_that_names_the_objective(own, caplog):
    metrics, _ = trained(own, "breaks_late", credit=(1000.0, -1.0, 0.5, -0.5))
    assert metrics["updates_skipped"] == 1 and math.isnan(metrics["loss"])
    assert "own.py:breaks_late returned the loss nan" in caplog.text


def test_a_micro_batch_in_which_nothing_counts_may_return_a_loss_without_a_gradient(own):
    metrics, weights = trained(own, "right_ones", max_tokens_per_microbatch=1)
    want, others = trained(own, "right_ones_by_weight", max_tokens_per_microbatch=1)
    assert metrics["micro_batches"] == want["micro_batches"] == 4 and metrics["loss"] == want["loss"] > 0
    assert_same_weights(weights, others)


@pytest.mark.parametrize("setting", [{"rollout_correction": "truncated"}, {"rollout_rejection": "sequence"}])
def test_a_rollout_correction_has_recomputed_numbers_to_compare_with(setting):
    model = tiny_model("sdar")
    assert make_policy(model, **setting).replay.recomputes and not make_policy(model).replay.recomputes


METHOD = """
import numpy as np


def halves(canvas, training, rng):
    \"\"\"Two copies of a response, whose round is the same.\"\"\"
    even = np.arange(len(canvas.ids_C)) % 2 == 0
    halves = [canvas.trained_C & part for part in (even, ~even)]
    return [canvas.masked(0, 0, half, half) for half in halves if half.any()]
"""


@pytest.mark.slow
def test_copies_of_a_users_method_that_share_a_round_stay_in_one_micro_batch_for_bgpo(tmp_path):
    (tmp_path / "halves.py").write_text(METHOD)
    rollouts = shifted(sampled(tiny_model("dream"), [5, 8, 3]), 0.4)
    found = []
    for most in (10**6, 1):
        model = tiny_model("dream")
        settings = {"objective": "bgpo", "method": f"{tmp_path}/halves.py:halves", "logp_old": "rollout", "eps": 0.5}
        policy = make_policy(model, **settings, max_tokens_per_microbatch=most)
        policy.replay = replace(policy.replay, method=method_of(policy.replay.training, "rl"))
        found.append((policy.train(policy.batch(rollouts, [1.0, -1.0, -0.5]), 1).metrics, weights_of(model)))
    (whole, weights), (split, others) = found
    assert split["micro_batches"] == 3 and whole["micro_batches"] == 1
    assert split["loss"] == pytest.approx(whole["loss"], abs=1e-6) and split["ratio"] == pytest.approx(whole["ratio"])
    assert_same_weights(weights, others, 1e-5)
