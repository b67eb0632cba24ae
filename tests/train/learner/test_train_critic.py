"""The value model: GAE over denoising steps and the clipped value loss against the reference, and what its training
moves."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from edit_decoder import edited
from helpers import GOLDEN, random_prompts, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck
from trainees import assert_same_weights, make_config, make_policy, replay_blocks, sampled, updater_of, weights_of

from models import ValueModel
from sample import Rollout
from train.algorithm.advantages import last_step_reward, step_gae
from train.algorithm.objectives import clipped_value_loss, per_token, token_weights
from train.algorithm.packing import pack
from train.algorithm.replay import Replayer
from train.distributed.accelerator import make_accelerator
from train.learner.batch import StepBatch
from train.learner.critic import Critic, denoising_steps
from train.learner.optimizer import OptimizerSettings, UpdateSettings

CASES = json.loads((GOLDEN / "value.json").read_text())["cases"]
MASK = 255
LENGTHS = [5, 8, 3, 10]
CPU = torch.device("cpu")


def replayed(case):
    """(rollouts, our rows) of a golden case: the answer ends where the pads begin; its blocks count from its start, so
    the prompt is one whole block."""
    rollouts = []
    for s, ids in enumerate(case["response_ids"]):
        answer = len(ids) if case["post_num"] is None else int(np.sum(case["trainable"][s]))
        steps = case["step_map"][s]
        prompt = [3] * case["block_size"]
        rollouts.append(Rollout((s,), prompt, ids, steps, [0.0] * len(ids), answer, "stop", max(steps)))
    settings = {"block_size": case["block_size"], "mask_id": MASK, "shrink": case["shrink"], "pad_id": case["pad_id"]}
    return rollouts, [replay_blocks(rollout, post_num=case["post_num"], **settings) for rollout in rollouts]


def estimated(case, rollouts, rows):
    """Returns and advantages [N] of each of our rows from the case's old values."""
    out = []
    for s, (rollout, row) in enumerate(zip(rollouts, rows, strict=True)):
        steps = denoising_steps(rollout, row, Replayer("block", False, MASK, case["block_size"]), case["shrink"])
        assert steps.tolist() == np.array(case["step_map_shrunk"][s])[row.canvas_index].tolist()
        old = np.array(case["old_values"][s])[row.canvas_index]
        given = case["reward"][s]
        reward = last_step_reward(given, steps) if np.ndim(given) == 0 else np.array(given)[row.canvas_index]
        out.append(step_gae(reward, old, steps, gamma=case["gamma"], lam=case["lam"]))
    return out


def test_the_cases_cover_every_setting():
    assert {c["reward_kind"] for c in CASES} == {"per_sequence", "per_token"}
    assert {(c["shrink"], c["block_size"]) for c in CASES} == {(1, 4), (2, 4), (1, 8)}
    assert {(c["gamma"], c["lam"]) for c in CASES} == {(1.0, 1.0), (0.99, 0.95)}
    assert {c["post_num"] for c in CASES} == {None, 0}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_returns_and_advantages_are_the_references(case):
    rollouts, rows = replayed(case)
    for s, (row, (returns, advantages)) in enumerate(zip(rows, estimated(case, rollouts, rows), strict=True)):
        assert sorted(row.canvas_index.tolist()) == np.flatnonzero(case["trainable"][s]).tolist()
        assert returns == pytest.approx(np.array(case["returns"][s])[row.canvas_index], abs=1e-5)
        assert advantages == pytest.approx(np.array(case["advantages"][s])[row.canvas_index], abs=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c["name"])
def test_the_value_loss_is_the_references(case):
    rollouts, rows = replayed(case)
    assert sum(row.num_rounds for row in rows) == case["num_rows"]
    batch = pack(rows, range(len(rows)), CPU)
    new, old = (
        per_token([np.array(case[name][s])[row.canvas_index] for s, row in enumerate(rows)], batch, CPU)
        for name in ("new_values", "old_values")
    )
    returns = per_token([r for r, _ in estimated(case, rollouts, rows)], batch, CPU)
    weights = token_weights(rows, "reference", max_gen_length=1, longest_response=len(case["response_ids"][0]))
    loss, sums = clipped_value_loss(new, old, returns, per_token(weights.policy, batch, CPU), eps=case["clip_eps"])
    assert float(loss) == pytest.approx(case["value_loss"], abs=1e-5)
    assert int(sums["tokens"]) == np.sum(case["trainable"])


steps_and_numbers = st.lists(st.tuples(st.integers(1, 6), st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=20)


@given(steps_and_numbers, st.floats(-3, 3))
def test_without_discount_a_response_returns_its_reward(tokens, reward):
    steps, _, values = (np.array(x) for x in zip(*tokens, strict=True))
    returns, advantages = step_gae(last_step_reward(reward, steps), values, steps, gamma=1.0, lam=1.0)
    assert returns == pytest.approx(np.full(len(steps), reward))
    assert advantages == pytest.approx(reward - values)


@given(steps_and_numbers, st.floats(0, 1), st.floats(0, 1))
def test_step_gae_token_by_token(tokens, gamma, lam):
    """Sums over all later steps instead of the recursion."""
    steps, rewards, values = (np.array(x) for x in zip(*tokens, strict=True))
    returns, advantages = step_gae(rewards, values, steps, gamma=gamma, lam=lam)
    order = sorted(set(steps.tolist()))
    r, v = ([float(np.mean(x[steps == s])) for s in order] + [0.0] for x in (rewards, values))
    deltas = [r[t] - v[t] + gamma * v[t + 1] for t in range(len(order))]
    for j, step in enumerate(steps.tolist()):
        t = order.index(step)
        later = range(t + 1, len(order))
        assert returns[j] == pytest.approx(rewards[j] + sum(gamma ** (k - t) * r[k] for k in later), abs=1e-9)
        ahead = sum((gamma * lam) ** (k - t) * deltas[k] for k in later)
        assert advantages[j] == pytest.approx(rewards[j] - values[j] + gamma * v[t + 1] + ahead, abs=1e-9)


@given(steps_and_numbers, st.integers(1, 50))
def test_only_the_order_of_steps_counts(tokens, factor):
    steps, rewards, values = (np.array(x) for x in zip(*tokens, strict=True))
    plain = step_gae(rewards, values, steps, gamma=0.9, lam=0.8)
    spread = step_gae(rewards, values, steps**2 * factor, gamma=0.9, lam=0.8)
    assert all(np.array_equal(a, b) for a, b in zip(plain, spread, strict=True))


def value_tokens(n=40, eps=0.2, seed=0):
    """value, old value, return, weight [N] in fp64, away from the edges of clip and maximum."""
    uniform = functools.partial(torch.rand, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    value, old, returns, weight = uniform(), uniform(), 2 * uniform() - 0.5, uniform() * (uniform() > 0.2)
    edge = ((value - old).abs() - eps).abs() < 1e-3
    return torch.where(edge, value + 0.01, value).requires_grad_(), old, returns, weight


def test_gradient_of_the_clipped_value_loss():
    value, old, returns, weight = value_tokens()
    assert ((value - old).detach().abs() > 0.2).any() and ((value - old).detach().abs() < 0.2).any()
    assert gradcheck(lambda v: clipped_value_loss(v, old, returns, weight, eps=0.2)[0], value, eps=1e-6, atol=1e-8)


def test_clipped_value_loss_token_by_token():
    value, old, returns, weight = value_tokens()
    loss, sums = clipped_value_loss(value, old, returns, weight, eps=0.2)
    total = clipped = 0.0
    for v, o, r, w in zip(*(x.tolist() for x in (value, old, returns, weight)), strict=True):
        held = min(max(v, o - 0.2), o + 0.2)
        total += w * 0.5 * max((v - r) ** 2, (held - r) ** 2)
        clipped += w > 0 and (held - r) ** 2 > (v - r) ** 2
    assert float(loss.detach()) == pytest.approx(total) and int(sums["clipped"]) == clipped > 0


def test_per_token_spreads_numbers_and_arrays():
    model = tiny_model("sdar")
    policy = make_policy(model)
    rows = policy.batch(sampled(model, LENGTHS), [1.0] * 4).samples
    micro = pack(rows, [2, 0], CPU)
    values = [1.5, 2.5, np.arange(rows[2].num_trained) / 7, 3.5]
    want = np.concatenate([values[2], np.full(rows[0].num_trained, 1.5)])
    assert per_token(values, micro, CPU).numpy() == pytest.approx(want)


def make_critic(base, sampler=None, *, value_learning_rate=1e-3, every=1, **training):
    """A critic of the rollouts of `sampler`, and beside it the `policy` that trains that model."""
    config = make_config(
        training=training,
    )
    value, policy = ValueModel(base), make_policy(sampler or tiny_model("sdar"), **training)
    updater = updater_of(config, value, make_accelerator("no", CPU), value_learning_rate)
    critic = Critic(value, updater, policy.replay, policy.schedule, every)
    critic.policy = policy
    return critic


def judged(base=None, *, n=2, **settings):
    """A critic, a batch and its rollouts."""
    critic = make_critic(base or tiny_model("sdar", seed=3), **settings)
    rollouts = sampled(critic.policy.updater.model, LENGTHS, n=n)
    return critic, critic.policy.batch(rollouts, np.linspace(-1, 1, len(rollouts)).tolist(), "reward"), rollouts


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_moves_the_body_from_its_second_update(tied):
    base = tiny_model("sdar", seed=3, tie_word_embeddings=tied, attention_bias=True)
    critic, batch, rollouts = judged(base, batch_size_lm=10**6)
    moved = []
    for step in (1, 2):
        before = weights_of(critic.model)
        _, metrics = critic.step(batch, rollouts, step)
        assert metrics["value/updates"] == 1 and metrics["value/grad_norm"] > 0
        after = weights_of(critic.model)
        moved.append({name for name in before if not torch.equal(before[name], after[name])})
    trainable = {name for name, p in critic.model.named_parameters() if p.requires_grad}
    assert moved == [{"value_head.weight"}, trainable]
    assert ("base.lm_head.weight" in dict(critic.model.named_parameters())) != tied
    assert "base.lm_head.weight" not in trainable and "base.model.embed_tokens.weight" in trainable


def test_a_fresh_value_model_leaves_the_reward_as_the_advantage():
    critic, batch, rollouts = judged()
    values = critic.updater.outputs(batch.samples, range(len(batch.samples)))
    assert all((value == 0).all() for value in values)
    after, metrics = critic.step(batch, rollouts, 1)
    for reward, advantage in zip(batch.credit, after.credit, strict=True):
        assert advantage == pytest.approx(np.full(len(advantage), reward))
    assert metrics["value/mean"] == 0.0 and metrics["value/explained_variance"] == pytest.approx(0.0)
    assert after.samples is batch.samples and after.logp_rollout is batch.logp_rollout


def test_the_updates_minimise_the_clipped_loss_of_the_old_values():
    """One update equals plain Adam on the loss written down per token, with values read before it."""
    results = []
    for plain in (False, True):
        critic, batch, rollouts = judged(batch_size_lm=10**6, gam=0.9, lam=0.8)
        critic.model.value_head.weight.data.fill_(0.05)
        if plain:
            estimates = critic.estimate(batch, rollouts)
            micro = pack(batch.samples, range(len(batch.samples)), CPU)
            value = critic.model(micro.ids, micro.positions, micro.layout, micro.index, micro.targets)
            old, returns = (
                torch.cat([torch.tensor(x).float() for x in each]) for each in (estimates.values, estimates.returns)
            )
            assert value.detach().numpy() == pytest.approx(old.numpy(), abs=1e-6)
            loss = (0.5 * (value - returns) ** 2).sum() / (len(batch.samples) * critic.replay.max_gen_length)
            optimizer = torch.optim.AdamW(
                [p for p in critic.model.parameters() if p.requires_grad], lr=1e-3, eps=1e-4, weight_decay=0.0
            )
            loss.backward()
            optimizer.step()
        else:
            critic.step(batch, rollouts, 1)
        results.append(weights_of(critic.model))
    assert_same_weights(*results, tolerance=2e-5)


@pytest.mark.slow
def test_updates_bring_the_values_to_the_returns():
    critic, batch, rollouts = judged(batch_size_lm=10**6, value_learning_rate=1e-2, normalization="token_mean")
    seen = [critic.step(batch, rollouts, step)[1]["value/explained_variance"] for step in range(1, 26)]
    assert seen[0] == pytest.approx(0.0) and seen[-1] > 0.5


@pytest.mark.parametrize("post_num", [0, 1, None])
@pytest.mark.parametrize("normalization", ["constant", "reference"])
@pytest.mark.parametrize("shrink", [1, 2])
def test_pads_after_the_answer(post_num, normalization, shrink):
    """Trained pads are tokens like others: the reward comes at the last trained step, and without discount every token
    returns it."""
    settings = {"post_num": post_num, "normalization": normalization, "shrink": shrink}
    model = tiny_model("sdar", pad_token_id=7)
    rollouts = sampled(model, LENGTHS, n=4, stop_ids=[9, 18, 27])
    critic = make_critic(tiny_model("sdar", seed=3), model, **settings)
    batch = critic.policy.batch(rollouts, [1.0] * len(rollouts), "reward")
    if post_num != 0 and shrink == 1:
        trained = sum(row.num_trained for row in batch.samples)
        assert trained > sum(rollout.num_response_tokens for rollout in rollouts)
    critic.model.value_head.weight.data.fill_(0.05)
    estimates = critic.estimate(batch, rollouts)
    for values, returns, advantages in zip(estimates.values, estimates.returns, estimates.advantages, strict=True):
        assert returns == pytest.approx(np.ones(len(values)))
        assert advantages == pytest.approx(1.0 - values, abs=1e-6)
    after, metrics = critic.step(batch, rollouts, 1)
    assert metrics["value/updates"] >= 1 and critic.policy.train(after, 1).metrics["updates"] >= 1


def test_a_reward_a_token_stands_where_it_is_given():
    model = tiny_model("sdar")
    rollouts = sampled(model, LENGTHS)
    noise = np.random.default_rng(0)
    rewards = [noise.normal(size=r.num_response_tokens).tolist() for r in rollouts]
    critic = make_critic(tiny_model("sdar", seed=3), model, post_num=None, gam=0.9, lam=0.7)
    batch = critic.policy.batch(rollouts, rewards, "reward")
    for rollout, row, reward, placed in zip(rollouts, batch.samples, rewards, batch.credit, strict=True):
        inside = row.canvas_index < rollout.num_response_tokens
        assert placed[inside].tolist() == np.array(reward)[row.canvas_index[inside]].tolist()
        assert not placed[~inside].any()
    estimates = critic.estimate(batch, rollouts)
    for rollout, row, placed, returns in zip(rollouts, batch.samples, batch.credit, estimates.returns, strict=True):
        steps = denoising_steps(rollout, row, critic.replay.replayer, 1)
        want = step_gae(placed, np.zeros(len(placed)), steps, gamma=0.9, lam=0.7)[0]
        assert returns == pytest.approx(want)
    after, _ = critic.step(batch, rollouts, 1)
    assert critic.policy.train(after, 1).metrics["updates"] >= 1


def test_of_an_edited_response_every_choice_has_the_return_of_its_own_step():
    model = tiny_model("sdar")
    rollouts = [edited(model, prompt, (1, "a", i), seed=i) for i, prompt in enumerate(random_prompts([5, 9]))]
    critic = make_critic(tiny_model("sdar", seed=3), model, gam=0.9, lam=1.0)
    batch = critic.policy.batch(rollouts, [1.0, -0.5], "reward")
    estimates = critic.estimate(batch, rollouts)
    for rollout, row, reward, returns in zip(rollouts, batch.samples, [1.0, -0.5], estimates.returns, strict=True):
        step_N = np.array(rollout.events.step)[row.event_index]
        _, number_N = np.unique(step_N, return_inverse=True)
        assert returns == pytest.approx(reward * 0.9 ** (number_N.max() - number_N))
        assert len(step_N) > rollout.num_response_tokens
    after, _ = critic.step(batch, rollouts, 1)
    assert critic.policy.train(after, 1).metrics["updates"] >= 1


def test_a_reward_of_another_length_is_an_error():
    model = tiny_model("sdar")
    rollouts = sampled(model, [5])
    with pytest.raises(ValueError, match="rewards or advantages; give one number, or one a token"):
        make_policy(model).batch(rollouts, [[1.0] * (rollouts[0].num_response_tokens + 1)])


def test_equal_numbers_a_token_are_one_number_a_response():
    results = []
    for spread in (False, True):
        model = tiny_model("sdar")
        rollouts = sampled(model, LENGTHS)
        advantages = [0.5, -1.0, 1.0, -0.5]
        if spread:
            advantages = [np.full(r.num_response_tokens, a) for r, a in zip(rollouts, advantages, strict=True)]
        policy = make_policy(model)
        policy.train(policy.batch(rollouts, advantages), 1)
        results.append(weights_of(model))
    assert_same_weights(*results)


def test_train_value_every():
    critic, batch, rollouts = judged(every=3)
    for step in range(1, 7):
        before = weights_of(critic.model)
        after, metrics = critic.step(batch, rollouts, step)
        still = all(torch.equal(before[name], w) for name, w in weights_of(critic.model).items())
        assert still == (step % 3 != 0) == ("value/updates" not in metrics)
        assert all(isinstance(advantage, np.ndarray) for advantage in after.credit)


def test_the_rates_are_each_models_own():
    critic, batch, rollouts = judged(value_learning_rate=7e-4)
    assert critic.step(batch, rollouts, 1)[1]["value/learning_rate"] == 7e-4
    config = make_config(optimizer={"params": {"learning_rate": 2e-4, "value_learning_rate": 7e-4}})
    params = config.optimizer.params
    assert OptimizerSettings.of(params, params.value_learning_rate).learning_rate == 7e-4
    assert OptimizerSettings.of(params).learning_rate == 2e-4


def test_no_rows_no_work():
    critic, batch, rollouts = judged()
    empty = StepBatch([], [], [], "reward", 0, 0, [])
    assert critic.step(empty, rollouts, 1) == (dataclasses.replace(empty, kind="advantage"), {})


def test_a_value_that_is_not_finite_never_touches_a_weight():
    critic, batch, rollouts = judged(batch_size_lm=10**6)
    critic.step(batch, rollouts, 1)
    before = weights_of(critic.model)
    bad = dataclasses.replace(batch, credit=[np.nan, *batch.credit[1:]])
    after, metrics = critic.step(bad, rollouts, 2)
    assert metrics["value/updates_skipped"] == 1 and metrics["value/updates"] == 0
    assert_same_weights(weights_of(critic.model), before)
    policy = make_policy(tiny_model("sdar"), batch_size_lm=10**6)
    assert policy.train(after, 2).metrics["updates_skipped"] == 1


def test_how_rows_are_packed_changes_no_value():
    critic, batch, rollouts = judged()
    critic.model.value_head.weight.data.fill_(0.05)
    whole = critic.updater.outputs(batch.samples, range(len(batch.samples)))
    critic.updater.settings = UpdateSettings(max_tokens=1)
    split = critic.updater.outputs(batch.samples, range(len(batch.samples)))
    for a, b in zip(whole, split, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_steps_of_full_attention_merge_over_the_whole_response():
    rollout = Rollout((0,), [3] * 5, [9] * 6, [3, 1, 2, 6, 4, 5], [0.0] * 6, 6, "length", 6)
    row = dataclasses.replace(replay_blocks(rollout, block_size=4, mask_id=1), event_index=np.arange(6))
    full, block = (Replayer(attention, False, 1, 4) for attention in ("full", "block"))
    assert denoising_steps(rollout, row, full, 1).tolist() == [3, 1, 2, 6, 4, 5]
    assert denoising_steps(rollout, row, full, 2).tolist() == [4, 2, 2, 6, 4, 6]
    assert denoising_steps(rollout, row, block, 2).tolist() == [3, 2, 2, 6, 5, 5]


@pytest.mark.parametrize(
    ("family", "method"),
    [("dream", "TraceRL"), ("llada", "TraceRL"), ("llada", "coupled"), ("dream", "random_masking")],
)
def test_full_attention_and_random_masks(family, method):
    """The rows of a response are judged together: TraceRL's give what one sequence of all its tokens gives."""
    policy_model = tiny_model(family)
    critic = make_critic(tiny_model(family, seed=3), policy_model, method=method, gam=0.9, lam=0.8, batch_size_lm=10**6)
    critic.model.value_head.weight.data.fill_(0.05)
    rollouts = sampled(policy_model, LENGTHS, block_size=4)
    batch = critic.policy.batch(rollouts, [1.0, -1.0, 0.5, -0.5], "reward")
    assert len(batch.samples) == len(rollouts) if method == "random_masking" else len(batch.samples) > len(rollouts)
    estimates = critic.estimate(batch, rollouts)
    if method == "TraceRL":
        for rollout, reward in zip(rollouts, [1.0, -1.0, 0.5, -0.5], strict=True):
            mine = [i for i, row in enumerate(batch.samples) if row.key == rollout.key]
            place = np.concatenate([batch.samples[i].canvas_index for i in mine])
            value, returns, advantage = (
                np.concatenate([found[i] for i in mine])
                for found in (estimates.values, estimates.returns, estimates.advantages)
            )
            steps = np.array(rollout.canvas_step_map)[place]
            want = step_gae(last_step_reward(reward, steps), value, steps, gamma=0.9, lam=0.8)
            assert returns == pytest.approx(want[0]) and advantage == pytest.approx(want[1])
            assert sorted(place.tolist()) == list(range(rollout.num_response_tokens))
    for step in (1, 2):
        after, metrics = critic.step(batch, rollouts, step)
        assert metrics["value/updates"] == 1
    assert critic.policy.train(after, 1).metrics["updates"] == 1
