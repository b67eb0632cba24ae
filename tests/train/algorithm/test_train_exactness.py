"""The trainer sees what the sampler saw, and how rows are packed, split and accumulated changes nothing."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from helpers import random_prompts, tiny_model
from trainees import (
    ADAM_EPSILON,
    STOPS,
    assert_same_weights,
    make_policy,
    plain_log_probs,
    plain_loss,
    sampled,
    shifted,
    weights_of,
    without_speed,
)

from sample import Sampler, SamplingConfig
from train.learner.batch import plan_updates

SHAPES = [(2, 2), (4, 4), (4, 2), (8, 8), (8, 3)]
DRAWS = {"greedy": 0.0, "T1": 1.0}
STRATEGIES = ("low_confidence_static", "low_confidence_dynamic", "sequential", "entropy_bounded")
LENGTHS = [9, 1, 6, 3, 12, 7, 10]


@functools.cache
def rollouts_of(model, block_size, steps, strategy, temperature):
    """Every remainder of the prompt, prompts shorter than a block among them."""
    config = SamplingConfig(
        max_new_tokens=11,
        block_size=block_size,
        steps_per_block=steps,
        strategy=strategy,
        threshold=0.4,
        entropy_bound=1.5,
        temperature=temperature,
        stop_ids=STOPS,
    )
    return Sampler(model, config).generate(random_prompts(range(1, 2 * block_size + 2), seed=block_size), n=3)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(("block_size", "steps"), SHAPES)
def test_trainer_log_probs_are_the_samplers(sdar, block_size, steps, draw, strategy):
    rollouts = rollouts_of(sdar, block_size, steps, strategy, DRAWS[draw])
    policy = make_policy(sdar, SamplingConfig(block_size=block_size))
    batch = policy.batch(rollouts, [1.0] * len(rollouts))
    assert batch.skipped == 0 and len(batch.samples) == len(rollouts)
    logps = policy.updater.outputs(batch.samples, range(len(rollouts)))
    for rollout, row, logp in zip(rollouts, batch.samples, logps, strict=True):
        assert sorted(row.canvas_index.tolist()) == list(range(rollout.num_response_tokens))
        assert logp == pytest.approx(np.array(rollout.canvas_logprobs)[row.canvas_index], abs=1e-5)


@pytest.mark.slow
def test_the_rollouts_above_end_in_every_way(sdar):
    seen = set()
    for (block_size, steps), strategy, temperature in itertools.product(SHAPES, STRATEGIES, DRAWS.values()):
        for rollout in rollouts_of(sdar, block_size, steps, strategy, temperature):
            right = rollout.canvas_ids[rollout.num_response_tokens :]
            seen |= {(rollout.finish_reason, "mask" if token == sdar.mask_id else "token") for token in right}
            seen.add("tail alone" if len(rollout.prompt_ids) < block_size else "after clean blocks")
    assert seen == {*itertools.product(("stop", "length"), ("mask", "token")), "tail alone", "after clean blocks"}


@pytest.mark.parametrize("shrink", [2, 3, 8])
def test_shrunk_rounds_train_every_token_once(sdar, shrink):
    policy = make_policy(sdar, shrink=shrink)
    rollouts = sampled(sdar, range(1, 10), n=2)
    batch = policy.batch(rollouts, [1.0] * len(rollouts))
    for rollout, row in zip(rollouts, batch.samples, strict=True):
        assert sorted(row.canvas_index.tolist()) == list(range(rollout.num_response_tokens))
        assert row.num_rounds <= -(-4 // shrink)


def test_pads_after_the_answer_are_exact_too(sdar):
    """Any id may be the pad: what the sampler put right of a stop is trained at the log-probability that it saw."""
    policy = make_policy(sdar, post_num=None)
    more = 0
    for rollout in sampled(sdar, range(1, 40), strategy="low_confidence_static", steps_per_block=2):
        right = rollout.canvas_ids[rollout.num_response_tokens :]
        pads = [token for token in right if token != sdar.mask_id]
        if not pads:
            continue
        policy.replay = dataclasses.replace(policy.replay, pad_id=pads[0])
        (row,), (logp,) = (batch := policy.batch([rollout], [1.0])).samples, policy.updater.outputs(batch.samples, [0])
        assert row.num_trained == rollout.num_response_tokens + right.count(pads[0])
        assert logp == pytest.approx(np.array(rollout.canvas_logprobs)[row.canvas_index], abs=1e-5)
        more += 1
    assert more > 5


def test_packed_rows_equal_plain_sequences(sdar):
    rollouts = sampled(sdar, LENGTHS, n=2)
    policy = make_policy(sdar)
    batch = policy.batch(rollouts, [1.0] * len(rollouts))
    for rollout, row, logp in zip(
        rollouts, batch.samples, policy.updater.outputs(batch.samples, range(len(batch.samples))), strict=True
    ):
        with torch.no_grad():
            found, rounds = plain_log_probs(sdar, rollout, 4)
        assert row.num_rounds == rounds and set(row.canvas_index.tolist()) == set(found)
        assert logp == pytest.approx([float(found[i]) for i in row.canvas_index.tolist()], abs=1e-5)


@pytest.mark.parametrize("max_tokens", [1, 60, 150])
def test_micro_batches_give_the_same_log_probs(sdar, max_tokens):
    rollouts = sampled(sdar, LENGTHS, n=3)
    whole, split = make_policy(sdar), make_policy(sdar, max_tokens_per_microbatch=max_tokens)
    rows = whole.batch(rollouts, [1.0] * len(rollouts)).samples
    want = whole.updater.outputs(rows, range(len(rows)))
    for chosen in (range(len(rows)), [5, 2, 17], [0]):
        got = split.updater.outputs(rows, chosen)
        for i in chosen:
            assert got[i] == pytest.approx(want[i], abs=1e-5)


class Step:
    """One RL step on fixed rollouts of a fresh tiny model; the weights after it and its metrics."""

    def __init__(self, rollouts, advantages=None, **training):
        self.model = tiny_model("sdar")
        advantages = advantages or np.linspace(-1.0, 1.5, len(rollouts)).tolist()
        policy = make_policy(self.model, **{"gradient_accumulation_steps": 1, "batch_size_lm": 10**6} | training)
        self.metrics = policy.train(policy.batch(rollouts, advantages), 1).metrics
        self.weights = weights_of(self.model)


@pytest.fixture(scope="module")
def moved(sdar):
    """Rollouts of a policy that has moved since: ratios on both sides of the clip range."""
    return shifted(sampled(sdar, LENGTHS, n=2), 0.4)


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["constant", "token_mean", "reference"])
def test_the_update_does_not_depend_on_micro_batches(moved, normalization):
    whole = Step(moved, normalization=normalization)
    for max_tokens in (1, 97):
        split = Step(moved, normalization=normalization, max_tokens_per_microbatch=max_tokens)
        assert split.metrics["micro_batches"] > whole.metrics["micro_batches"] == 1
        assert_same_weights(split.weights, whole.weights, 1e-6)
        for name in ("loss", "kl", "grad_norm", "clip_ratio", "ratio", "mismatch_kl"):
            assert split.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-4, abs=1e-7), name


@pytest.mark.slow
def test_accumulation_times_batch_is_what_counts(moved):
    steps = [
        Step(moved, gradient_accumulation_steps=ga, batch_size_lm=b) for ga, b in ((12, 1), (1, 12), (3, 4), (4, 3))
    ]
    assert steps[0].metrics["updates"] > 2
    for step in steps[1:]:
        assert_same_weights(step.weights, steps[0].weights)
        assert without_speed(step.metrics) == without_speed(steps[0].metrics)


@pytest.mark.slow
@pytest.mark.parametrize("normalization", ["constant", "token_mean", "reference"])
def test_updates_equal_plain_gradients(moved, normalization):
    """Several updates, the last one smaller, against AdamW on losses written out token by token."""
    advantages = np.linspace(-1.0, 1.5, len(moved)).tolist()
    step = Step(moved, advantages, normalization=normalization, batch_size_lm=12, max_gen_length=32, seed=3)
    model = tiny_model("sdar")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=ADAM_EPSILON, weight_decay=0.0)
    rows = make_policy(model).batch(moved, advantages).samples
    updates = plan_updates(rows, 12, [3, 1, 0])
    sizes = [sum(rows[i].num_rounds for i in update) for update in updates]
    assert len(updates) == step.metrics["updates"] > 2 and sizes[-1] < 12 <= min(sizes[:-1])
    losses = []
    for update in updates:
        loss = plain_loss(
            model,
            [moved[i] for i in update],
            [advantages[i] for i in update],
            block_size=4,
            normalization=normalization,
            max_gen_length=32,
            longest=max(r.num_response_tokens for r in moved),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert step.metrics["loss"] == pytest.approx(np.mean(losses), abs=1e-6)
    assert_same_weights(step.weights, weights_of(model), 1e-6)


def test_batch_mates_do_not_enter_a_response(moved):
    """Under `constant` the gradient of a batch is the mean of its responses' own; `reference` weighs by batch mates."""

    def gradient(rollouts, normalization):
        model = tiny_model("sdar")
        policy = make_policy(model, normalization=normalization, max_gen_length=32)
        batch = policy.batch(rollouts, [1.0] * len(rollouts))
        policy.updater.engine.optimizer.step = lambda: None
        policy.updater.engine.module.zero_grad = lambda set_to_none: None
        policy.train(batch, 1)
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    short, long = (f(moved, key=lambda r: r.num_response_tokens) for f in (min, max))
    assert short.num_response_tokens < long.num_response_tokens
    for normalization, independent in (("constant", True), ("reference", False)):
        pair = gradient([short, long], normalization)
        mean = (gradient([short], normalization) + gradient([long], normalization)) / 2
        assert torch.allclose(pair, mean, atol=1e-6) == independent


@pytest.mark.parametrize("normalization", ["constant", "token_mean", "reference"])
def test_a_batch_doubled_is_the_same_update(moved, normalization):
    advantages = np.linspace(-1.0, 1.5, len(moved)).tolist()
    once = Step(moved, advantages, normalization=normalization)
    twins = [dataclasses.replace(rollout, key=(*rollout.key, "twin")) for rollout in moved]
    twice = Step([*moved, *twins], [*advantages, *advantages], normalization=normalization)
    assert twice.metrics["loss"] == pytest.approx(once.metrics["loss"], abs=1e-6)
    assert twice.metrics["grad_norm"] == pytest.approx(once.metrics["grad_norm"], rel=1e-4)


@pytest.mark.slow
def test_the_first_update_starts_at_ratio_one(sdar):
    """mismatch_kl: the sampler's log-probabilities against the trainer's, before any weight moves."""
    for logp_old in ("auto", "rollout", "recompute"):
        step = Step(sampled(sdar, LENGTHS, n=2), logp_old=logp_old, eps=0.2)
        assert 0.0 <= step.metrics["mismatch_kl"] < 1e-9 and step.metrics["mismatch_abs"] < 1e-5
        assert step.metrics["ratio"] == pytest.approx(1.0, abs=1e-5)
        assert step.metrics["kl"] < 1e-9 and step.metrics["clip_ratio"] == 0.0


def test_recomputed_old_log_probs_forget_the_samplers(moved):
    """What the sampler says differs by 0.4 here: only `recompute` does not look at it, and the mismatch shows."""
    by_rollout, recomputed = (Step(moved, logp_old=choice).metrics for choice in ("rollout", "recompute"))
    assert by_rollout["clip_ratio"] > 0.05 and recomputed["clip_ratio"] == 0.0
    assert recomputed["ratio"] == pytest.approx(1.0, abs=1e-6)
    assert (
        by_rollout["mismatch_kl"] == pytest.approx(recomputed["mismatch_kl"], rel=1e-5)
        and recomputed["mismatch_kl"] > 1e-3
    )


def test_mismatch_is_measured_before_the_weights_move(moved):
    """Over the first update only: later ones run on other weights."""
    first = Step(moved, batch_size_lm=12).metrics
    assert first["updates"] > 2 and first["mismatch_abs"] == pytest.approx(0.2, abs=0.05)


def test_epochs_repeat_every_response(moved):
    once, twice = Step(moved).metrics, Step(moved, num_train_epochs=2).metrics
    assert twice["trained_tokens"] == 2 * once["trained_tokens"] and twice["updates"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("rows_by", ["surprisal", "uniform"])
def test_the_mean_of_drawn_rows_is_the_gradient_of_all_rows(sdar, rows_by):
    """Each response many times, under keys that draw its rows anew: under `constant` their gradient is the mean. Places
    of much and of little surprisal take turns, so that chances lie far apart."""

    def gradient(rollouts, advantages, **training):
        model = tiny_model("sdar")
        policy = make_policy(model, objective="reinforce", beta=0.0, rows_per_update=10**6, **training)
        policy.updater.engine.optimizer.step = lambda: None
        policy.updater.engine.module.zero_grad = lambda set_to_none: None
        loss = policy.train(policy.batch(rollouts, advantages), 1).metrics["loss"]
        return loss, torch.cat([p.grad.flatten() for p in model.parameters()])

    rollouts = [
        dataclasses.replace(
            rollout, canvas_logprobs=[-8.0 if i % 3 == 0 else -0.1 for i in range(len(rollout.canvas_ids))]
        )
        for rollout in sampled(sdar, [9, 6, 3])
    ]
    draws = 300
    loss, want = gradient(rollouts, advantages := [1.0, -1.0, 2.0])
    again = [dataclasses.replace(r, key=(*r.key[:-1], i)) for r in rollouts for i in range(draws)]
    drawn, got = gradient(again, np.repeat(advantages, draws).tolist(), rows_per_response=2, rows_by=rows_by)
    assert drawn == pytest.approx(loss, rel=0.05)
    assert float((got - want).norm() / want.norm()) < 0.1
