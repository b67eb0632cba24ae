"""One answer a prompt, whatever the way to it: the oracle, batches, arrival, fusing, caches."""

import dataclasses
import functools
import itertools
import random

import oracle
import pytest
from helpers import random_prompts, thinned, tiny_model
from oracle import same

from sample import Sampler, SamplingConfig
from sample.strategies import STRATEGIES
from sample.targets import TARGETS

LENGTHS = [9, 1, 4, 6, 3, 11, 8]
PROMPTS = random_prompts(LENGTHS, seed=3)
STOPS = tuple(range(2, 64, 9))

DRAWS = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.0},
    "filtered": {"temperature": 0.7, "top_k": 9, "top_p": 0.8},
    "tempered": {"temperature": 1.3, "top_p": 0.9, "confidence": "tempered"},
}
SHAPES = [(4, 4, 10), (2, 1, 5), (8, 3, 11), (4, (1, 4, 2), 9), (8, 8, 6), (4, 2, 8)]
CASES = [
    (strategy, target, draw, SHAPES[(5 * i + j) % len(SHAPES)])
    for i, (strategy, target) in enumerate(itertools.product(STRATEGIES, TARGETS))
    for j, draw in enumerate(DRAWS)
]


def make(case, **changes):
    strategy, target, draw, (block_size, steps, tokens) = case
    settings = {"strategy": strategy, "target": target, "block_size": block_size, "steps_per_block": steps}
    settings |= {"max_new_tokens": tokens, "threshold": 0.5, "entropy_bound": 1.5, "stop_ids": STOPS, "seed": 7}
    return SamplingConfig(**settings | DRAWS[draw] | changes)


@functools.cache
def pairs_of(model, case):
    """Two answers to each prompt, made the usual way: what the variants are compared with."""
    return Sampler(model, make(case)).generate(PROMPTS, n=2)


@pytest.mark.parametrize("case", thinned(CASES, 3), ids=lambda c: "-".join([*c[:3], f"b{c[3][0]}"]))
def test_batch_of_seven_equals_the_oracle(sdar, case):
    sampler = Sampler(sdar, make(case))
    for prompt, rollout in zip(PROMPTS, sampler.generate(PROMPTS), strict=True):
        same(rollout, oracle.decode(sdar, prompt, sampler.config, rollout.key))


def test_the_cases_end_in_every_way(sdar):
    """What the test above covers: both endings, masks and tokens right of a stop, masks right of the limit."""
    seen = set()
    for case in CASES[::9]:
        for rollout in pairs_of(sdar, case):
            right = rollout.canvas_ids[rollout.num_response_tokens :]
            seen |= {(rollout.finish_reason, "mask" if token == sdar.mask_id else "token") for token in right}
            seen.add(rollout.finish_reason)
    assert seen >= {"stop", "length", ("stop", "mask"), ("stop", "token"), ("length", "mask"), ("length", "token")}


VARIANTS = {
    "one_by_one": {},
    "slots_1": {"max_slots": 1},
    "slots_2": {"max_slots": 2},
    "slots_3": {"max_slots": 3},
    "unfused": {"fuse_commit": False},
    "unfused_slots_3": {"fuse_commit": False, "max_slots": 3},
    "no_cache": {"cache": "none"},
    "no_cache_slots_2": {"cache": "none", "max_slots": 2},
    "deterministic": {"deterministic": True, "max_slots": 4},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", thinned(CASES[::9], 2), ids=lambda c: "-".join([*c[:3], f"b{c[3][0]}"]))
def test_variants_agree(sdar, case, variant):
    want = pairs_of(sdar, case)
    sampler = Sampler(sdar, make(case, **VARIANTS[variant]))
    if variant == "one_by_one":
        got = [sampler.generate([r.prompt_ids], keys=[r.key])[0] for r in want]
    else:
        got = sampler.generate(PROMPTS, n=2)
    for a, b in zip(got, want, strict=True):
        assert a.key == b.key
        same(a, b)


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 30])
def test_any_order_of_admission_gives_the_same_answers(sdar, slots):
    case = ("low_confidence_dynamic", "confidence", "plain", (4, 4, 14))
    want = Sampler(sdar, make(case)).generate(PROMPTS, n=3)
    sampler = Sampler(sdar, make(case, max_slots=slots))
    for seed in range(2):
        order = random.Random(seed).sample(range(len(want)), len(want))
        got = sampler.generate([want[i].prompt_ids for i in order], keys=[want[i].key for i in order])
        for i, rollout in zip(order, got, strict=True):
            same(rollout, want[i])


@pytest.mark.slow
@pytest.mark.parametrize(("polls", "slots"), [(2, 3), (8, 7)])
def test_several_steps_between_two_looks_of_the_host_change_nothing(sdar, polls, slots):
    """The way of accelerators, where the host looks at the slots only now and then."""
    for case in CASES[::14]:
        sampler = Sampler(sdar, make(case, max_slots=slots))
        sampler.steps_between_polls = polls
        for a, b in zip(sampler.generate(PROMPTS, n=2), pairs_of(sdar, case), strict=True):
            same(a, b)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_siblings_that_follow_one_another_in_a_slot(sdar, slots):
    """Groups larger than the slots, with answers of many lengths: prompts stay in slots, are copied and moved."""
    case = ("low_confidence_dynamic", "confidence", "plain", (4, 4, 17))
    want = Sampler(sdar, make(case)).generate(PROMPTS[:4], n=5)
    for a, b in zip(Sampler(sdar, make(case, max_slots=slots)).generate(PROMPTS[:4], n=5), want, strict=True):
        same(a, b)


def test_deterministic_mode_gives_the_same_bits_in_any_order(sdar):
    case = ("low_confidence_dynamic", "confidence", "plain", (4, 4, 14))
    sampler = Sampler(sdar, make(case, max_slots=3, deterministic=True))
    want = {r.key: r for r in sampler.generate(PROMPTS, n=2)}
    for seed in range(3):
        mixed = random.Random(seed).sample(list(want.values()), len(want))
        for rollout in sampler.generate([r.prompt_ids for r in mixed], keys=[r.key for r in mixed]):
            assert rollout == want[rollout.key]


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [2, 4, 8])
def test_every_remainder_of_the_prompt(sdar, block_size):
    prompts = random_prompts(range(1, 2 * block_size + 2), seed=5)
    config = SamplingConfig(max_new_tokens=7, block_size=block_size, temperature=1.0, threshold=0.4, stop_ids=[])
    sampler = Sampler(sdar, config)
    for prompt, rollout in zip(prompts, sampler.generate(prompts), strict=True):
        same(rollout, oracle.decode(sdar, prompt, sampler.config, rollout.key))
        assert len(rollout.token_ids) == 7 and (len(prompt) + len(rollout.canvas_ids)) % block_size == 0


def test_the_pad_penalty_lowers_the_rank_of_pads(sdar):
    """The token that an answer decides first, made the pad: with a penalty another position comes first."""
    base = {"max_new_tokens": 8, "strategy": "low_confidence_static", "stop_ids": []}
    for target in ("confidence", "neg_entropy"):
        later = []
        for rollout in Sampler(sdar, SamplingConfig(**base, target=target)).generate(PROMPTS[1:4]):
            first = rollout.step_map.index(1)
            config = SamplingConfig(**base, target=target, pad_id=rollout.token_ids[first], pad_target_penalty=1e6)
            sampler = Sampler(sdar, config)
            (penalised,) = sampler.generate([rollout.prompt_ids])
            same(penalised, oracle.decode(sdar, rollout.prompt_ids, sampler.config, penalised.key))
            later.append(penalised.step_map[first] > 1)
        assert sum(later) >= 2


@pytest.mark.slow
def test_tied_weights_and_other_seeds(sdar):
    model = tiny_model("sdar", seed=5, tie_word_embeddings=True, num_key_value_heads=4)
    config = SamplingConfig(max_new_tokens=9, temperature=1.0, seed=1, stop_ids=[])
    answers = set()
    for seed in (0, -3, 2**40):
        sampler = Sampler(model, dataclasses.replace(config, seed=seed))
        for prompt, rollout in zip(PROMPTS, sampler.generate(PROMPTS), strict=True):
            same(rollout, oracle.decode(model, prompt, sampler.config, rollout.key))
            answers.add(tuple(rollout.token_ids))
    assert len(answers) == 3 * len(PROMPTS)
