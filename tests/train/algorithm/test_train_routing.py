"""Replay of a mixture's routing: each token takes in training the experts that it had in sampling."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from helpers import random_prompts, tiny_model
from trainees import STOPS, make_policy

from models.experts import ExpertLoad, routers
from sample import Rollout, Sampler, SamplingConfig
from sample.routing import RoutingCache

CONFIG = SamplingConfig(
    max_new_tokens=11,
    block_size=4,
    steps_per_block=3,
    threshold=0.4,
    temperature=1.0,
    stop_ids=STOPS,
    record_routing=True,
    max_slots=5,
)


def recorded(model, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return Sampler(model, config).generate(random_prompts([4, 9, 3, 6], seed=1), n=2)


def log_probs(model, rollouts, **training):
    policy = make_policy(model, dataclasses.replace(CONFIG, record_routing=False), **training)
    batch = policy.batch(rollouts, [1.0] * len(rollouts))
    return policy, batch, policy.updater.outputs(batch.samples, range(len(batch.samples)))


@pytest.mark.parametrize("family", ["llada2", pytest.param("sdar_moe", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("sampling", "training"),
    [({}, {}), *(pytest.param(s, t, marks=pytest.mark.slow) for s, t in (({}, {"shrink": 2}), ({"max_slots": 1}, {})))],
)
def test_replayed_experts_are_those_that_training_would_choose_itself(family, sampling, training):
    """In fp32 nothing changes: every token's experts were recorded at the right place, step and layer."""
    model = tiny_model(family)
    rollouts = recorded(model, **sampling)
    _, batch, free = log_probs(model, rollouts, **training)
    _, replayed, got = log_probs(model, rollouts, **training, replay_routing=True)
    for sample, logp, want in zip(replayed.samples, got, free, strict=True):
        assert sample.experts.shape == (sample.num_tokens, len(routers(model)), 2)
        assert logp == pytest.approx(want, abs=1e-5)
    if not training:
        for rollout, sample, logp in zip(rollouts, batch.samples, got, strict=True):
            assert logp == pytest.approx(np.array(rollout.canvas_logprobs)[sample.canvas_index], abs=1e-5)


@pytest.mark.slow
def test_edited_trajectories_are_routed_as_they_were():
    model = tiny_model("llada2")
    rollouts = recorded(model, edit_threshold=0.2, max_post_steps=3)
    assert any(rollout.events.overwrites().any() for rollout in rollouts)
    _, _, free = log_probs(model, rollouts)
    _, batch, got = log_probs(model, rollouts, replay_routing=True)
    for rollout, sample, logp, want in zip(rollouts, batch.samples, got, free, strict=True):
        assert logp == pytest.approx(want, abs=1e-5)
        assert logp == pytest.approx(np.array(rollout.events.logprob)[sample.event_index], abs=1e-5)


@pytest.mark.slow
def test_equal_keys_are_recorded_apart_wherever_they_are_decoded():
    """Slots that others had before, holes that are closed, and a session that is given a prompt twice."""
    model, prompts = tiny_model("llada2"), random_prompts([4, 4, 9], seed=2)
    prompts = [prompts[0], prompts[1], prompts[0], prompts[2], prompts[0], prompts[0]]
    config = dataclasses.replace(CONFIG, max_slots=3)
    rollouts = Sampler(model, config).generate(prompts)
    session = Sampler(model, config).session(24)
    indices = [session.add(prompt)[0] for prompt in prompts]
    polled = {}
    for number in range(200):
        if number == 2:
            session.cancel(indices[1])
        polled |= {update.index: update.rollout for update in session.poll() if update.rollout is not None}
    assert sorted(polled) == sorted({*indices} - {indices[1]})
    for place, rollout in enumerate(rollouts):
        _, _, free = log_probs(model, [rollout])
        for recorded_one in (rollout, polled.get(indices[place], rollout)):
            _, _, got = log_probs(model, [recorded_one], replay_routing=True)
            assert recorded_one.token_ids == rollout.token_ids
            assert all(a == pytest.approx(b, abs=1e-5) for a, b in zip(got, free, strict=True))


def test_what_is_kept_of_a_step_is_of_one_response():
    kept, take = [], RoutingCache.take

    def spy(cache, slot, *given):
        kept.extend(cache.denoised[slot].values())
        return take(cache, slot, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RoutingCache, "take", spy)
        recorded(tiny_model("llada2"))
    assert kept and all(experts.base is None for experts in kept)


@pytest.mark.slow
def test_a_router_that_has_moved_still_routes_as_in_sampling_and_learns(monkeypatch):
    model = tiny_model("llada2")
    rollouts = recorded(model)
    with torch.no_grad():
        for router in routers(model).values():
            router.weight.copy_(router.weight.flip(0))
    policy, batch, _ = log_probs(model, rollouts, replay_routing=True, gradient_checkpointing_enable=True)
    model.enable_gradient_checkpointing()
    before = {name: router.weight.detach().clone() for name, router in routers(model).items()}
    chosen = np.concatenate([sample.experts for sample in batch.samples])
    taken = []
    take = ExpertLoad.take
    monkeypatch.setattr(ExpertLoad, "take", lambda load: taken.append(take(load)) or taken[-1])
    result = policy.train(batch, step=1)
    assert result.metrics["updates"] >= 1 and result.metrics["mismatch_kl"] > 1e-6
    total = sum(next(iter(counts.values())) for counts in taken)
    want = np.bincount(chosen[:, 0].ravel(), minlength=8)
    assert total.tolist() in ([*want], [*(2 * want)])  # checkpointing runs each forward again
    assert all(not torch.equal(router.weight, before[name]) for name, router in routers(model).items())


def test_a_record_with_experts_comes_back_from_its_line():
    rollout = recorded(tiny_model("llada2"))[1]
    row = json.loads(rollout.to_json())
    again = Rollout.from_dict(row)
    for name in ("clean", "noisy"):
        assert np.array_equal(getattr(again.routing, name), getattr(rollout.routing, name))
    assert len(rollout.routing.noisy) == rollout.num_steps and rollout.routing.clean.shape[1:] == (1, 2)
    row["routing"]["clean"]["data"] = "####"
    with pytest.raises(ValueError, match="has a routing that cannot be read.*damaged"):
        Rollout.from_dict(row)


def test_what_cannot_be_recorded_or_replayed_is_refused():
    model = tiny_model("llada2")
    with pytest.raises(ValueError, match="record_routing=True: the model has no routers"):
        Sampler(tiny_model("sdar"), CONFIG)
    for changes in ({"cache": "none"}, {"fuse_commit": False}):
        with pytest.raises(ValueError, match="only the exact cache of block families, with fused commits"):
            Sampler(model, dataclasses.replace(CONFIG, **changes))
    plain = [dataclasses.replace(rollout, routing=None) for rollout in recorded(model)]
    with pytest.raises(ValueError, match="has no experts recorded, which training.replay_routing replays"):
        log_probs(model, plain, replay_routing=True)
