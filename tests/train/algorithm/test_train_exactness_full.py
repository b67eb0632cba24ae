"""Full attention without a cache: the trainer sees what the sampler saw, and how rows are packed, split and accumulated
changes nothing."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from helpers import random_prompts, tiny_model
from trainees import STOPS, assert_same_weights, make_policy, sampled, shifted, weights_of, without_speed

from models.attention import Masked
from sample import Sampler, SamplingConfig

FAMILIES = ("dream", "llada", "mmada")
SHAPES = [(4, 4), (8, 3), (5, 2), (32, None)]
SLOW = [("sequential", 1.0), ("entropy_bounded", 1.0), ("low_confidence_static", 0.0), ("low_confidence_dynamic", 0.0)]
NEW_TOKENS = 11


@pytest.fixture(scope="module")
def models():
    return {family: tiny_model(family) for family in FAMILIES}


@functools.cache
def rollouts_of(model, block_size, steps, strategy, temperature):
    config = SamplingConfig(
        max_new_tokens=NEW_TOKENS,
        block_size=block_size,
        steps_per_block=steps,
        strategy=strategy,
        threshold=0.4,
        entropy_bound=1.5,
        temperature=temperature,
        stop_ids=STOPS,
    )
    return Sampler(model, config).generate(random_prompts([1, 6, 9], seed=block_size), n=2)


def by_place(policy, rollouts):
    """Canvas place -> (trainer's log-probability, the one kept in the rollout), for each rollout."""
    batch = policy.batch(rollouts, [1.0] * len(rollouts))
    assert batch.skipped == 0
    found = {rollout.key: {} for rollout in rollouts}
    for row, kept, logp in zip(
        batch.samples, batch.logp_rollout, policy.updater.outputs(batch.samples, range(len(batch.samples))), strict=True
    ):
        mine = dict(zip(row.canvas_index.tolist(), zip(logp.tolist(), kept.tolist(), strict=True), strict=True))
        assert not found[row.key].keys() & mine.keys()
        found[row.key] |= mine
    return [found[rollout.key] for rollout in rollouts]


def assert_exact(found):
    trained, kept = np.array([pair for place in found for pair in place.values()]).T
    assert trained == pytest.approx(kept, abs=1e-5)


@pytest.mark.parametrize(
    ("strategy", "temperature"),
    [
        ("low_confidence_static", 1.0),
        ("low_confidence_dynamic", 1.0),
        *(pytest.param(s, t, marks=pytest.mark.slow) for s, t in SLOW),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_trainer_log_probs_are_the_samplers(models, family, strategy, temperature):
    for block_size, steps in SHAPES:
        rollouts = rollouts_of(models[family], block_size, steps, strategy, temperature)
        found = by_place(make_policy(models[family], SamplingConfig(block_size=block_size)), rollouts)
        assert_exact(found)
        for rollout, places in zip(rollouts, found, strict=True):
            assert sorted(places) == list(range(rollout.num_response_tokens))


def test_the_rollouts_above_end_in_every_way(models):
    seen = set()
    for family, (block_size, steps), strategy in itertools.product(
        FAMILIES, SHAPES, ("low_confidence_static", "low_confidence_dynamic")
    ):
        for rollout in rollouts_of(models[family], block_size, steps, strategy, 1.0):
            right = rollout.canvas_ids[rollout.num_response_tokens :]
            seen |= {(family, rollout.finish_reason, token == models[family].mask_id) for token in right}
            seen |= {(family, "whole")} if not right else set()
    assert seen >= {(family, "stop", masked) for family in FAMILIES for masked in (False, True)}
    assert seen >= {(family, "whole") for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("draw", [{"top_k": 5, "top_p": 0.8}, {"alg_temp": 0.7}, {"early_stop": False}, {"top_k": 1}])
def test_other_ways_to_draw(models, family, draw):
    rollouts = sampled(models[family], [3, 7], n=2, strategy="low_confidence_static", block_size=4, **draw)
    assert_exact(by_place(make_policy(models[family], SamplingConfig(block_size=4)), rollouts))


@pytest.mark.parametrize("post_num", [0, None])
def test_what_was_filled_in_is_not_trained(models, post_num):
    """After a block of pads Dream's rest is filled without a forward: no log-probability was seen there."""
    model = models["dream"]
    policy = make_policy(model, SamplingConfig(block_size=1), post_num=post_num)
    settings = {"block_size": 1, "stop_ids": ()}
    for pad_id in sampled(model, [8], **settings)[0].canvas_ids[2:5]:
        rollouts = sampled(model, [8, 5], pad_id=pad_id, **settings)
        policy.replay = dataclasses.replace(policy.replay, pad_id=pad_id)
        found = by_place(policy, rollouts)
        assert_exact(found)
        for rollout, places in zip(rollouts, found, strict=True):
            steps = np.array(rollout.canvas_step_map)
            assert sorted(places) == np.flatnonzero(steps <= rollout.num_steps).tolist()
        assert max(rollouts[0].canvas_step_map) == rollouts[0].num_steps + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_pads_after_the_answer_are_exact_too(models, family):
    """Any id may be the pad: what was decided right of a stop is trained at the log-probability that it had."""
    model, more = models[family], 0
    policy = make_policy(model, SamplingConfig(block_size=8), post_num=None)
    for rollout in sampled(model, range(1, 14), strategy="low_confidence_static", block_size=8, steps_per_block=2):
        right = rollout.canvas_ids[rollout.num_response_tokens :]
        pads = [token for token in right if token != model.mask_id]
        if pads:
            policy.replay = dataclasses.replace(policy.replay, pad_id=pads[0])
            found = by_place(policy, [rollout])
            assert_exact(found)
            assert len(found[0]) == rollout.num_response_tokens + right.count(pads[0])
            more += 1
    assert more > 2


def plain_log_probs(model, rollout):
    """Canvas place -> log-probability, from one unpacked forward a denoising step."""
    P, steps, found = len(rollout.prompt_ids), np.array(rollout.canvas_step_map), {}
    for s in sorted(set(steps[: rollout.num_response_tokens].tolist())):
        canvas = np.where((steps > 0) & (steps < s), rollout.canvas_ids, model.mask_id).tolist()
        ids = torch.tensor([rollout.prompt_ids + canvas])
        hidden_LD = model.hidden(ids, torch.arange(ids.shape[1])[None], Masked(None))[0]
        logp_LV = model.lm_head(hidden_LD).log_softmax(-1)
        for i in np.flatnonzero(steps[: rollout.num_response_tokens] == s).tolist():
            found[i] = logp_LV[P + i - model.logit_shift, rollout.canvas_ids[i]]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_equal_plain_sequences(models, family):
    rollouts = sampled(models[family], [5, 1, 9], n=2, block_size=4)
    for rollout, places in zip(
        rollouts, by_place(make_policy(models[family], SamplingConfig(block_size=4)), rollouts), strict=True
    ):
        with torch.no_grad():
            plain = plain_log_probs(models[family], rollout)
        assert plain.keys() == places.keys()
        assert [places[i][0] for i in plain] == pytest.approx([float(plain[i]) for i in plain], abs=1e-5)


@pytest.mark.parametrize(
    ("family", "method"),
    [("dream", "TraceRL"), ("llada", "coupled"), ("mmada", "random_masking"), ("dream", "coupled")],
)
def test_micro_batches_give_the_same_log_probs(models, family, method):
    rollouts = sampled(models[family], [5, 1, 9], n=2, block_size=4)
    settings = {"method": method, "mask_times_per_sample": 3, "shrink": 2}
    whole = make_policy(models[family], **settings)
    rows = whole.batch(rollouts, [1.0] * len(rollouts)).samples
    want = whole.updater.outputs(rows, range(len(rows)))
    for max_tokens in (1, 50):
        split = make_policy(models[family], max_tokens_per_microbatch=max_tokens, **settings)
        for got, expected in zip(split.updater.outputs(rows, range(len(rows))), want, strict=True):
            assert got == pytest.approx(expected, abs=1e-5)


@pytest.fixture(scope="module")
def moved(models):
    """Rollouts of a policy that has moved since: ratios on both sides of the clip range."""
    return {family: shifted(sampled(model, [9, 1, 6, 3], n=2, block_size=4), 0.4) for family, model in models.items()}


class Step:
    """One RL step on fixed rollouts of a fresh tiny model; the weights after it and its metrics."""

    def __init__(self, family, rollouts, **training):
        self.model = tiny_model(family)
        settings = {"gradient_accumulation_steps": 1, "batch_size_lm": 10**6, "logp_old": "rollout"} | training
        if settings.get("method", "TraceRL") != "TraceRL":
            settings["logp_old"] = "recompute"
        policy = make_policy(self.model, SamplingConfig(block_size=4, max_new_tokens=16), **settings)
        self.metrics = policy.train(policy.batch(rollouts, np.linspace(-1.0, 1.5, len(rollouts)).tolist()), 1).metrics
        self.weights = weights_of(self.model)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("dream", {"normalization": "constant"}),
        ("dream", {"normalization": "reference"}),
        ("llada", {"normalization": "token_mean", "shrink": 3}),
        ("llada", {"method": "coupled"}),
        ("mmada", {"method": "random_masking", "mask_times_per_sample": 4}),
        ("mmada", {"rows_per_response": 3}),
        ("mmada", {"rows_per_response": 3, "rows_by": "surprisal"}),
        ("llada", {"method": "elbo", "objective": "espo", "mask_times_per_sample": 2}),
        ("dream", {"method": "ar_order", "rows_per_response": 3}),
    ],
)
def test_the_update_does_not_depend_on_micro_batches(moved, family, settings):
    whole = Step(family, moved[family], **settings)
    split = Step(family, moved[family], max_tokens_per_microbatch=61, **settings)
    assert split.metrics["micro_batches"] > whole.metrics["micro_batches"] == 1
    assert_same_weights(split.weights, whole.weights, 1e-6)
    for name in ("loss", "kl", "grad_norm", "clip_ratio", "ratio"):
        assert split.metrics[name] == pytest.approx(whole.metrics[name], rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("family", ["dream", "llada"])
def test_accumulation_times_batch_is_what_counts(moved, family):
    first, *others = (
        Step(family, moved[family], gradient_accumulation_steps=ga, batch_size_lm=b)
        for ga, b in ((24, 1), (1, 24), (6, 4))
    )
    assert first.metrics["updates"] > 1
    for step in others:
        assert_same_weights(step.weights, first.weights)
        assert without_speed(step.metrics) == without_speed(first.metrics)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_update_starts_at_ratio_one(models, family):
    for logp_old in ("auto", "rollout", "recompute"):
        step = Step(family, sampled(models[family], [5, 1, 9], n=2, block_size=4), logp_old=logp_old)
        assert 0.0 <= step.metrics["mismatch_kl"] < 1e-9 and step.metrics["mismatch_abs"] < 1e-5
        assert step.metrics["ratio"] == pytest.approx(1.0, abs=1e-5)
        assert step.metrics["kl"] < 1e-9 and step.metrics["clip_ratio"] == 0.0


@pytest.mark.parametrize("family", ["dream", "llada"])
@pytest.mark.parametrize("normalization", ["constant", "reference"])
def test_the_gradient_is_the_slope_of_the_loss(moved, family, normalization):
    """Central difference along the gradient, through replay, packing, model and objective."""
    model = tiny_model(family)
    policy = make_policy(
        model,
        SamplingConfig(block_size=4, max_new_tokens=16),
        normalization=normalization,
        logp_old="rollout",
        beta=0.1,
        batch_size_lm=10**6,
    )
    policy.updater.engine.optimizer.step = lambda: None
    policy.updater.engine.module.zero_grad = lambda set_to_none: None
    batch = policy.batch(moved[family], np.linspace(-1.0, 1.5, len(moved[family])).tolist())
    parameters = list(model.parameters())
    policy.train(batch, 1)
    gradients = [p.grad.clone() for p in parameters]
    squared = sum(float((g**2).sum()) for g in gradients)
    size = 2e-3 / squared**0.5

    def loss_at(shift):
        for p, g in zip(parameters, gradients, strict=True):
            p.data.add_(g, alpha=shift)
        loss = policy.train(batch, 1).metrics["loss"]
        for p, g in zip(parameters, gradients, strict=True):
            p.data.add_(g, alpha=-shift)
        return loss

    assert (loss_at(size) - loss_at(-size)) / (2 * size) == pytest.approx(squared, rel=0.02)
