"""Small trainers around tiny models, made-up rollouts, and the update written down a second time: one sequence for
each round of each block of each response, under plain attention."""

import copy
import dataclasses
import functools
import json

import numpy as np
import torch
from helpers import random_prompts

from configs.load import merge
from models.attention import Masked, block_causal_mask
from sample import Rollout, Sampler, SamplingConfig
from train.algorithm.replay import Replayer, replay
from train.distributed.accelerator import make_accelerator
from train.learner.batch import Replay
from train.learner.optimizer import OptimizerSettings, Schedule, UpdateSettings
from train.learner.policy import Policy
from train.learner.updater import Updater
from train.setup.doors import method_of, objective_of

STOPS = tuple(range(2, 64, 9))
ADAM_EPSILON = 1e-4


def make_config(**sections):
    """A config of fp32 training without clipping; sections as dicts. Adam's epsilon is large, so that an update is a
    smooth function of the gradient and rounding stays rounding."""
    base = {
        "training": {"mixed_precision": "no", "max_grad_norm": 0.0},
        "optimizer": {"params": {"learning_rate": 1e-3, "epsilon": ADAM_EPSILON}},
    }
    return copy.deepcopy(_merged(json.dumps([base, sections])))


@functools.cache
def _merged(trees):
    return merge(*json.loads(trees))


def make_policy(model, sampling=None, *, total_step=1000, learning_rate=1e-3, **training):
    config = make_config(
        training=training,
        experiment={"total_step": total_step},
        optimizer={"params": {"learning_rate": learning_rate}},
    )
    accelerator = make_accelerator("no", torch.device("cpu"))
    return policy_of(config, model, accelerator, sampling or SamplingConfig(max_new_tokens=16))


def updater_of(config, model, accelerator, learning_rate=None):
    optimizer = OptimizerSettings.of(config.optimizer.params, learning_rate)
    return Updater(model, accelerator, optimizer, UpdateSettings.of(config.training))


def policy_of(config, model, accelerator, sampling, reference=None):
    """The policy that a config asks for, of the rollouts that `sampling` gives."""
    training = config.training
    replay = Replay.of(
        model, sampling.for_model(model), training, method_of(training, "rl"), config.rollout.num_response_per_task
    )
    schedule = Schedule.of(config.lr_scheduler, config.experiment.total_step)
    return Policy(updater_of(config, model, accelerator), replay, objective_of(training), schedule, reference)


def sampled(model, lengths, *, n=1, seed=0, **settings):
    """Rollouts at temperature 1 that stop early and late."""
    settings = {"max_new_tokens": 11, "temperature": 1.0, "threshold": 0.4, "stop_ids": STOPS, "seed": seed} | settings
    return Sampler(model, SamplingConfig(**settings)).generate(random_prompts(lengths, seed=seed), n=n)


def shifted(rollouts, spread, seed=0):
    """The same rollouts with log-probabilities off by up to `spread`, as if the policy had moved since."""
    noise = np.random.default_rng(seed)
    return [
        dataclasses.replace(
            r, canvas_logprobs=(r.canvas_logprobs + noise.uniform(-spread, spread, len(r.canvas_ids))).tolist()
        )
        for r in rollouts
    ]


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def without_speed(metrics):
    """Of an update, without what the clock says."""
    return {name: value for name, value in metrics.items() if name != "update_tokens_per_second"}


def assert_same_weights(got, want, tolerance=0.0):
    assert got.keys() == want.keys()
    for name in want:
        gap = float((got[name] - want[name]).abs().max())
        assert gap <= tolerance, f"{name} differs by {gap}"


def replay_blocks(rollout, *, block_size, mask_id, pad_id=None, per_round=False, **training):
    """The TraceRL row of a block family's rollout, or None."""
    settings = make_config(training=training | {"normalization": "reference" if per_round else "constant"}).training
    rows = replay(rollout, Replayer("block", False, mask_id, block_size), settings, pad_id=pad_id)
    return rows[0] if rows else None


def random_rollout(generator, *, prompt_tokens, block_size, blocks=3, vocab_size=64, mask_id=1, pad_id=0):
    """What a sampler could have left: whole blocks in order, random steps inside each; right of the stop id other ids,
    pads and masks."""
    length = blocks * block_size - prompt_tokens % block_size
    block = (prompt_tokens % block_size + np.arange(length)) // block_size
    ids = generator.integers(3, vocab_size, length)
    steps = block * block_size + generator.integers(1, block_size + 1, length)
    last = np.flatnonzero(block == blocks - 1)
    answer = int(generator.integers(last[0], last[-1] + 1)) + 1
    for i in range(answer, length):
        kind = generator.integers(3)
        ids[i], steps[i] = [(ids[i], steps[i]), (pad_id, steps[i]), (mask_id, 0)][kind]
    return Rollout(
        key=(int(generator.integers(2**31)),),
        prompt_ids=generator.integers(3, vocab_size, prompt_tokens).tolist(),
        canvas_ids=ids.tolist(),
        canvas_step_map=steps.tolist(),
        canvas_logprobs=(-generator.random(length)).tolist(),
        num_response_tokens=answer,
        finish_reason="stop",
        num_steps=int(steps.max()),
    )


def plain_distributions(model, rollout, block_size):
    """Canvas index -> (token, log-distribution [V] that it was drawn from) of each token of the view, and the number of
    rounds, at shrink 1."""
    P, b = len(rollout.prompt_ids), block_size
    whole, steps = rollout.prompt_ids + rollout.canvas_ids, [0] * P + rollout.canvas_step_map
    found, rounds = {}, set()
    for low in range(P // b * b, P + rollout.num_response_tokens, b):
        places = range(max(low, P), min(low + b, len(whole)))
        for rank, s in enumerate(sorted({steps[i] for i in places} - {0})):
            trained = [i for i in places if steps[i] == s and i < P + rollout.num_response_tokens]
            if trained:
                noisy = [
                    model.mask_id if i >= P and not 0 < steps[i] < s else whole[i] for i in range(low, places[-1] + 1)
                ]
                ids = torch.tensor([whole[:low] + noisy])
                L = ids.shape[1]
                hidden_LD = model.hidden(ids, torch.arange(L)[None], Masked(block_causal_mask(L, b)))[0]
                logp_LV = model.lm_head(hidden_LD).log_softmax(-1)
                found |= {i - P: (whole[i], logp_LV[i]) for i in trained}
                rounds.add(rank)
    return found, len(rounds)


def plain_log_probs(model, rollout, block_size):
    """Canvas index -> log-probability of each token of the view, and the number of rounds, at shrink 1."""
    found, rounds = plain_distributions(model, rollout, block_size)
    return {place: logp_V[token] for place, (token, logp_V) in found.items()}, rounds


def plain_loss(model, rollouts, advantages, *, block_size, normalization, max_gen_length, longest, eps=0.2, beta=0.01):
    """TraceRL's loss of one update made of these responses, token by token."""
    per_response, tokens, rows = [], 0, 0
    for rollout, advantage in zip(rollouts, advantages, strict=True):
        found, rounds = plain_log_probs(model, rollout, block_size)
        terms = []
        for place, logp in found.items():
            d = logp - rollout.canvas_logprobs[place]
            ratio = d.exp()
            objective = torch.minimum(ratio * advantage, ratio.clamp(1 - eps, 1 + eps) * advantage)
            terms.append(-objective + beta * ((-d).exp() - 1 + d))
        per_response.append(torch.stack(terms).sum())
        tokens, rows = tokens + len(terms), rows + rounds
    total = torch.stack(per_response).sum()
    return (
        total
        / {"constant": len(rollouts) * max_gen_length, "token_mean": tokens, "reference": rows * longest}[normalization]
    )
