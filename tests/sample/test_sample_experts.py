"""Mixtures of experts: caches and batch mates change nothing."""

import functools

import pytest
from helpers import random_prompts, tiny_model
from oracle import same

from sample import Sampler, SamplingConfig

FAMILIES = ("llada2", *(pytest.param(family, marks=pytest.mark.slow) for family in ("llada2_2", "sdar_moe")))


@functools.cache
def model_of(family):
    """llada2_2: with experts that are chosen for blocks of 4 together."""
    return tiny_model("llada2", expert_capacity=3) if family == "llada2_2" else tiny_model(family)


def settings(block_size, **changes):
    """Stops inside blocks; steps that decide several tokens."""
    given = {"max_new_tokens": 2 * block_size + 3, "steps_per_block": -(-block_size // 2), "temperature": 1.0}
    stops = tuple(range(2, 64, 9))
    return SamplingConfig(block_size=block_size, threshold=0.4, stop_ids=stops, **(given | changes))


@functools.cache
def rollouts_of(family, block_size):
    """Prompts that end on and inside blocks, and one shorter than a block."""
    prompts = random_prompts([block_size, 2 * block_size + 1, block_size - 1, 3], seed=block_size)
    return Sampler(model_of(family), settings(block_size)).generate(prompts, n=2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "changes",
    [{"cache": "none"}, *(pytest.param(c, marks=pytest.mark.slow) for c in ({"max_slots": 2}, {"fuse_commit": False}))],
)
@pytest.mark.parametrize("block_size", [pytest.param(4, marks=pytest.mark.slow), 8])
def test_without_a_cache_and_in_other_batches_the_answers_are_the_same(family, changes, block_size):
    want = rollouts_of(family, block_size)
    sampler = Sampler(model_of(family), settings(block_size, **changes))
    got = sampler.generate([rollout.prompt_ids for rollout in want], keys=[rollout.key for rollout in want])
    for a, b in zip(got, want, strict=True):
        same(a, b)
