"""Decoding in which edits delete and insert tokens (LLaDA2.2): rules, record, and one answer whatever the way to it."""

import functools
import json

import oracle_moves
import pytest
import torch
from capture_emulator import Emulator
from helpers import random_prompts, thinned, tiny_model
from oracle import same

from sample import Rollout, Sampler, SamplingConfig
from sample.moves import moved, needed

PROMPTS = random_prompts([9, 1, 4, 6, 11], seed=3)
DELETE, INSERT, M = 40, 41, -9
EDITS = {"edit_threshold": 0.3, "max_post_steps": 5}
CASES = {
    "edits": EDITS,
    "edits whatever their probability": {"edit_threshold": 0.0, "max_post_steps": 16, "threshold": 0.2},
    "no post steps": EDITS | {"max_post_steps": 0},
    "two a step": EDITS | {"steps_per_block": 2},
    "drawn": EDITS | {"temperature": 1.0, "top_p": 0.9},
    "drawn from all": EDITS | {"temperature": 1.0, "edit_threshold": 0.0},
    "by margin": EDITS | {"target": "margin_confidence"},
    "the schedule's share": EDITS | {"strategy": "low_confidence_static", "steps_per_block": 3},
    "blocks of 8": EDITS | {"block_size": 8, "max_new_tokens": 19, "edit_threshold": 0.0, "max_post_steps": 8},
    "blocks of 32": EDITS | {"block_size": 32, "max_new_tokens": 20, "threshold": 0.3, "edit_threshold": 0.0},
    "to the end": EDITS | {"early_stop": False},
}


@functools.cache
def moving_model(sharpness=2.0):
    """LLaDA2.2 with likely DELETE and INSERT, which lie beyond the ids of text."""
    model = tiny_model("llada2", expert_capacity=3, delete_token_id=DELETE, split_token_id=INSERT)
    with torch.no_grad():
        model.lm_head.weight[[DELETE, INSERT]] *= sharpness
    model.text_vocab_size = 38
    return model


def config_of(**changes):
    shared = {"max_new_tokens": 10, "block_size": 4, "threshold": 0.5, "seed": 7, "max_slots": 4}
    return SamplingConfig(**shared | {"stop_ids": tuple(range(2, 38, 9))} | changes)


def agrees(rollout, want):
    answer, events = want
    same(rollout, answer)
    got = rollout.events
    rows = [*zip(got.step, got.place, got.token, got.action, got.source, strict=True)]
    assert rows == [(*event[:4], event[5]) for event in events]
    assert got.logprob == pytest.approx([event[4] for event in events], abs=1e-5)


@functools.cache
def usual_answers():
    return Sampler(moving_model(), config_of(**CASES["drawn from all"])).generate(PROMPTS, n=2)


@pytest.mark.parametrize("name", thinned(CASES, 4))
def test_a_batch_equals_the_oracle(name):
    model, sampler = moving_model(), Sampler(moving_model(), config_of(**CASES[name]))
    for prompt, rollout in zip(PROMPTS, sampler.generate(PROMPTS), strict=True):
        agrees(rollout, oracle_moves.decode(model, prompt, sampler.config, rollout.key))
        assert not {DELETE, INSERT} & {*rollout.canvas_ids} and model.mask_id not in rollout.canvas_ids


def test_zz_count():
    import collections
    for name, case in CASES.items():
        c = collections.Counter()
        for r in Sampler(moving_model(), config_of(**case)).generate(PROMPTS, n=1):
            e = r.events
            c["D"] += e.action.count(DELETE); c["I"] += e.action.count(INSERT); c["E"] += len(e); c["steps"] += r.num_steps
            c["over"] += int(e.overwrites().sum()); c["moved"] += sum(a == -1 for a in e.action); c["tok"] += r.num_response_tokens
            Rollout.from_dict(json.loads(r.to_json()))
        print(name, dict(c))
