"""A user's objective inside a run, after it has passed the trial on made-up tokens."""

import pytest
from helpers import tiny_model
from trainees import assert_same_weights, make_policy, sampled, weights_of

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


def test_a_loss_that_is_not_finite_ends_the_run_with_the_objectives_name(own):
    with pytest.raises(ValueError, match=r"own.py:breaks_late returned the loss nan for finite log-probabilities"):
        trained(own, "breaks_late", credit=(1000.0, -1.0, 0.5, -0.5))


def test_a_micro_batch_in_which_nothing_counts_may_return_a_loss_without_a_gradient(own):
    metrics, weights = trained(own, "right_ones", max_tokens_per_microbatch=1)
    want, others = trained(own, "right_ones_by_weight", max_tokens_per_microbatch=1)
    assert metrics["micro_batches"] == want["micro_batches"] == 4 and metrics["loss"] == want["loss"] > 0
    assert_same_weights(weights, others)


@pytest.mark.parametrize("setting", [{"rollout_correction": "truncated"}, {"rollout_rejection": "sequence"}])
def test_a_rollout_correction_has_recomputed_numbers_to_compare_with(setting):
    model = tiny_model("sdar")
    assert make_policy(model, **setting).replay.recomputes and not make_policy(model).replay.recomputes
