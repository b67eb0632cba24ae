"""Replay of trajectories in which tokens are overwritten or masked again: the trainer sees every choice in the state in
which it was made."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from edit_decoder import edited
from helpers import GOLDEN, random_prompts, thinned, tiny_model
from trainees import STOPS, assert_same_weights, make_config, make_policy, weights_of

from models import load_model
from sample import Events, Rollout, Sampler, SamplingConfig
from train.algorithm.masking import METHODS
from train.algorithm.replay import Replayer, recorded_logprobs, replay
from train.algorithm.steps import last_events
from train.learner.critic import denoising_steps
from train.setup.step_judge import StepJudge, at_events


@functools.cache
def rollouts_of(model, block_size):
    """Prompts shorter than a block and with every tail, answers that stop inside a block and that do not."""
    lengths = [1, 2, 3, 5, 8, 13] if block_size < 32 else [3, 40]
    given = {"block_size": block_size, "stop_ids": STOPS[::3], "max_new_tokens": 11 if block_size < 32 else 40}
    prompts = random_prompts(lengths, seed=block_size)
    return [edited(model, prompt, (1, "a", i), seed=i, **given) for i, prompt in enumerate(prompts)]


def choices_of(rollout):
    """The events that are choices at places of the response."""
    events = rollout.events
    chosen = zip(events.action, events.place, strict=True)
    return [i for i, (action, place) in enumerate(chosen) if action >= 0 and place < rollout.num_response_tokens]


@pytest.mark.parametrize("block_size", [4, 8, pytest.param(32, marks=pytest.mark.slow)])
def test_every_choice_is_trained_once_at_the_log_probability_that_it_had(sdar, block_size):
    check_exactness(sdar, rollouts_of(sdar, block_size), block_size)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_so_it_is_under_full_attention(family):
    model = tiny_model(family)
    check_exactness(model, rollouts_of(model, 4), 4)


def check_exactness(model, rollouts, block_size):
    policy = make_policy(model, SamplingConfig(block_size=block_size, max_new_tokens=40))
    batch = policy.batch(rollouts, [1.0] * len(rollouts))
    logps = policy.updater.outputs(batch.samples, range(len(batch.samples)))
    overwritten = remasked = 0
    for rollout in rollouts:
        Rollout.from_dict(json.loads(rollout.to_json()))  # a record that is consistent in itself
        mine = [i for i, sample in enumerate(batch.samples) if sample.key == rollout.key]
        events = np.concatenate([batch.samples[i].event_index for i in mine])
        assert sorted(events.tolist()) == choices_of(rollout)
        assert np.concatenate([logps[i] for i in mine]) == pytest.approx(recorded_logprobs(rollout)[events], abs=1e-5)
        for i in mine:
            sample = batch.samples[i]
            assert sample.targets.tolist() == np.array(rollout.events.action)[sample.event_index].tolist()
            assert batch.logp_rollout[i] == pytest.approx(logps[i], abs=1e-5)
        overwritten += rollout.events.overwrites().sum()
        remasked += rollout.events.remasks().sum()
    assert overwritten > 10 and remasked > 2
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"} or block_size == 32


def test_only_choices_that_stand_are_trained_under_last(sdar):
    policy = make_policy(sdar, trained_events="last")
    rollouts = rollouts_of(sdar, 4)
    batch = policy.batch(rollouts, [1.0] * len(rollouts))
    logps = policy.updater.outputs(batch.samples, range(len(batch.samples)))
    for rollout, sample, logp in zip(rollouts, batch.samples, logps, strict=True):
        assert sorted(sample.canvas_index.tolist()) == list(range(rollout.num_response_tokens))
        assert logp == pytest.approx(np.array(rollout.canvas_logprobs)[sample.canvas_index], abs=1e-5)


def test_a_rollout_that_overwrites_nothing_is_replayed_as_one_without_events(sdar):
    plain = rollouts_of(sdar, 4)[0]
    once = last_events(plain.events, len(plain.canvas_ids))
    rows = [
        (plain.events.step[i], place, plain.canvas_ids[place], plain.canvas_ids[place], plain.canvas_logprobs[place])
        for place, i in enumerate(once.tolist())
        if plain.canvas_step_map[place]
    ]
    with_events, without = (dataclasses.replace(plain, events=events) for events in (Events.of(rows), None))
    for shrink in (1, 2):
        policy = make_policy(sdar, shrink=shrink)
        (one,), (other,) = policy.batch([with_events], [1.0]).samples, policy.batch([without], [1.0]).samples
        for name in ("ids", "positions", "block", "copy", "index", "targets", "canvas_index", "round_index", "weight"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


MASK = 99
HAND = [  # one block of four: (step, place, token, action, logprob)
    (1, 0, 10, 10, -0.1),
    (2, 0, 11, 11, -0.2),
    (2, 1, 20, 20, -0.3),
    (3, 1, MASK, -1, 0.0),
    (4, 1, 21, 21, -0.4),
    (4, 2, 30, 30, -0.5),
    (5, 0, 12, 12, -0.6),
    (5, 3, 40, 40, -0.7),
]
BY_HAND = Rollout(
    (1, "a", 0),
    [5] * 4,
    [12, 21, 30, 40],
    [5, 4, 4, 5],
    [-0.6, -0.4, -0.5, -0.7],
    4,
    "length",
    5,
    events=Events.of(HAND),
)


def copies_of(shrink=1, trained_events="all"):
    settings = make_config(training={"shrink": shrink, "trained_events": trained_events}).training
    (sample,) = replay(BY_HAND, Replayer("block", False, MASK, 4), settings)
    held = [sample.ids[sample.copy == n].tolist() for n in range(1, sample.copy.max() + 1)]
    said = [
        dict(zip(sample.canvas_index[sample.copy[sample.index] == n].tolist(), targets.tolist(), strict=True))
        for n in range(1, sample.copy.max() + 1)
        for targets in [sample.targets[sample.copy[sample.index] == n]]
    ]
    return list(zip(held, said, strict=True))


def test_a_copy_holds_the_block_before_its_step_and_says_what_was_chosen_in_it():
    assert copies_of() == [
        ([MASK, MASK, MASK, MASK], {0: 10}),
        ([10, MASK, MASK, MASK], {0: 11, 1: 20}),
        ([11, MASK, MASK, MASK], {1: 21, 2: 30}),
        ([11, 21, 30, MASK], {0: 12, 3: 40}),
    ]
    assert copies_of(trained_events="last") == [
        ([11, MASK, MASK, MASK], {1: 21, 2: 30}),
        ([11, 21, 30, MASK], {0: 12, 3: 40}),
    ]


def test_merged_steps_hold_the_state_before_the_first_and_say_the_last_choice_of_each_place():
    """Steps without a choice (3) are not counted."""
    assert copies_of(shrink=2) == [
        ([MASK, MASK, MASK, MASK], {0: 11, 1: 20}),
        ([11, MASK, MASK, MASK], {0: 12, 1: 21, 2: 30, 3: 40}),
    ]
    assert copies_of(shrink=8) == [([MASK, MASK, MASK, MASK], {0: 12, 1: 21, 2: 30, 3: 40})]


def test_rewards_and_steps_go_by_event():
    (sample,) = replay(BY_HAND, replayer := Replayer("block", False, MASK, 4), make_config().training)
    steps = dict(zip(sample.event_index.tolist(), denoising_steps(BY_HAND, sample, replayer, 1).tolist(), strict=True))
    assert steps == {0: 1, 1: 2, 2: 2, 4: 4, 5: 4, 6: 5, 7: 5}
    merged = denoising_steps(BY_HAND, sample, replayer, 2)
    assert dict(zip(sample.event_index.tolist(), merged.tolist(), strict=True)) == {
        **{0: 2, 1: 2, 2: 2},
        **{4: 5, 5: 5, 6: 5, 7: 5},
    }
    given = at_events([0.0, 1.0, 0.0, 2.0], BY_HAND)
    assert given == [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 2.0]
    judge = StepJudge.__new__(StepJudge)
    judge.gamma = 1.0
    # Step means: 1: 0, 2: 0, 4: (1 + 0) / 2, 5: (0 + 2) / 2; a choice gets its own reward and the means after it.
    assert judge.returns_to_go(given, BY_HAND) == [1.5, 1.5, 1.5, 0.0, 2.0, 1.0, 0.0, 2.0]


def test_credit_of_an_edited_rollout_is_one_number_or_one_an_event(sdar):
    policy = make_policy(sdar)
    rollout = rollouts_of(sdar, 4)[0]
    by_event = np.arange(len(rollout.events), dtype=float)
    batch = policy.batch([rollout], [by_event])
    assert np.concatenate(batch.credit).tolist() == batch.samples[0].event_index.tolist()
    with pytest.raises(ValueError, match=rf"has {len(rollout.events)} events and 2 rewards .* or one an event"):
        policy.batch([rollout], [[1.0, 2.0]])


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.rl and not method.as_sampled])
def test_methods_with_masks_of_their_own_take_the_response_as_it_ended(sdar, method):
    rollout = rollouts_of(sdar, 4)[3]
    policy, ended = make_policy(sdar, method=method), dataclasses.replace(rollout, events=None)
    one, other = policy.batch([rollout], [1.0]), policy.batch([ended], [1.0])
    for sample, same in zip(one.samples, other.samples, strict=True):
        for name in ("ids", "copy", "index", "targets", "canvas_index", "weight"):
            assert np.array_equal(getattr(sample, name), getattr(same, name)), name
        assert np.array_equal(np.array(rollout.events.place)[sample.event_index], sample.canvas_index)
    assert np.array_equal(one.logp_rollout, other.logp_rollout) and policy.replay.recomputes


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [1, 90])
def test_packing_never_changes_an_update_on_events(sdar, max_tokens):
    weights = []
    for limit in (16384, max_tokens):
        policy = make_policy(tiny_model("sdar"), max_tokens_per_microbatch=limit, rows_per_update=10**6)
        policy.train(policy.batch(rollouts_of(sdar, 4), [1.0, -0.5, 0.25, 1.0, -1.0, 0.5]), 1)
        weights.append(weights_of(policy.updater.model))
    assert_same_weights(weights[1], weights[0], 1e-6)


def test_old_log_probabilities_are_recomputed_where_steps_are_merged(sdar):
    policy, rollouts = make_policy(tiny_model("sdar"), shrink=2), rollouts_of(sdar, 4)
    assert policy.replay.recomputes and not make_policy(sdar).replay.recomputes
    batch = policy.batch(rollouts, [1.0] * len(rollouts))
    result = policy.train(batch, 1)
    assert result.metrics["ratio"] == pytest.approx(1.0, abs=1e-4) and result.metrics["trained_tokens"] > 30


def test_the_mismatch_of_an_edited_step_is_rounding_and_drawn_copies_go_by_their_events_surprisal(sdar):
    policy, rollouts = make_policy(tiny_model("sdar")), rollouts_of(sdar, 4)
    result = policy.train(policy.batch(rollouts, [1.0] * len(rollouts)), 1)
    assert result.metrics["mismatch_kl"] < 1e-9
    assert result.metrics["trained_tokens"] == sum(len(choices_of(rollout)) for rollout in rollouts)
    drawn = make_policy(sdar, rows_per_response=2, rows_by="surprisal").batch(rollouts, [1.0] * len(rollouts))
    assert all(sample.num_rounds <= 2 for sample in drawn.samples)
    assert torch.isfinite(torch.tensor(np.concatenate([sample.weight for sample in drawn.samples]))).all()


SAMPLED = {
    "edits": {"edit_threshold": 0.3, "max_post_steps": 5},
    "edits in blocks of 8": {"edit_threshold": 0.0, "max_post_steps": 2, "block_size": 8},
    "edits in blocks of 32": {"edit_threshold": 0.2, "block_size": 32, "max_new_tokens": 40, "threshold": 0.2},
    "remasking": {"remask_threshold": 0.3, "remask_budget": 3},
    "both": {"edit_threshold": 0.3, "remask_threshold": 0.2, "remask_budget": 4, "max_post_steps": 5},
}


@pytest.mark.parametrize("name", thinned(SAMPLED, 4))
def test_the_samplers_own_events_are_replayed_exactly(sdar, name):
    settings = {"block_size": 4, "max_new_tokens": 11, "threshold": 0.5, "temperature": 1.0, "stop_ids": STOPS}
    sampling = SamplingConfig(**settings | SAMPLED[name])
    rollouts = Sampler(sdar, sampling).generate(random_prompts([1, 2, 3, 5, 8, 13], seed=2), n=2)
    policy = make_policy(sdar, sampling)
    batch = policy.batch(rollouts, [1.0] * len(rollouts))
    assert not policy.replay.recomputes and sum(
        r.events.overwrites().sum() + r.events.remasks().sum() for r in rollouts
    )
    events = {sample.key: sorted(sample.event_index.tolist()) for sample in batch.samples}
    assert events == {rollout.key: choices_of(rollout) for rollout in rollouts}
    logps = policy.updater.outputs(batch.samples, range(len(batch.samples)))
    for logp, given in zip(logps, batch.logp_rollout, strict=True):
        assert logp == pytest.approx(given, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_so_are_those_of_remasking_under_full_attention(family):
    sampling = SamplingConfig(
        block_size=4, max_new_tokens=10, threshold=0.5, temperature=1.0, remask_threshold=0.3, remask_budget=3
    )
    model = tiny_model(family)
    rollouts = Sampler(model, sampling).generate(random_prompts([1, 4, 9], seed=2), n=2)
    policy = make_policy(model, sampling)
    batch = policy.batch(rollouts, [1.0] * len(rollouts))
    logps = policy.updater.outputs(batch.samples, range(len(batch.samples)))
    assert not policy.replay.recomputes and sum(rollout.events.remasks().sum() for rollout in rollouts)
    assert np.concatenate(logps) == pytest.approx(np.concatenate(batch.logp_rollout), abs=1e-5)


@pytest.mark.slow
def test_events_of_the_original_are_replayed_as_it_scored_them():
    """LLaDA2.1's own draft-and-edit on random weights: logits reach 40, and so does rounding."""
    model, kept = load_model(GOLDEN / "llada2"), 0
    for case in json.loads((GOLDEN / "llada2" / "decode_edits.json").read_text())["cases"][::3]:
        steps, places, _, tokens = (list(column) for column in zip(*case["events"], strict=True))
        rows = zip(steps, places, tokens, tokens, case["event_logprobs"], strict=True)
        R, P = len(case["token_ids"]), len(case["prompt_ids"])
        padding = -(P + R) % case["block_size"]
        rollout = Rollout(
            (case["name"],),
            case["prompt_ids"],
            [*case["token_ids"], *[model.mask_id] * padding],
            [*case["step_map"], *[0] * padding],
            [*case["logprobs"], *[0.0] * padding],
            R,
            "length",
            case["num_forwards"],
            events=Events.of([*rows]),
        )
        policy = make_policy(model, SamplingConfig(block_size=case["block_size"], max_new_tokens=R))
        batch = policy.batch([rollout], [1.0])
        (logp,) = policy.updater.outputs(batch.samples, [0])
        assert len(logp) == len(choices_of(rollout))
        assert logp == pytest.approx(batch.logp_rollout[0], abs=3e-5)
        kept += len(logp)
    assert kept > 300
