"""Log-likelihoods of given responses: the chain is the sampler's own, the bound has the right mean, and neither depends
on how it is batched."""

import itertools
import math

import pytest
import torch
from helpers import random_prompts, tiny_model

from sample import Sampler, SamplingConfig
from sample.likelihood import bound, chain

PROMPTS = random_prompts([9, 1, 6, 12], seed=2)
RESPONSES = random_prompts([7, 5, 1, 8], seed=4)


@pytest.mark.parametrize("block_size", [4, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_chain_is_the_sum_of_the_log_probabilities_of_sequential_decoding(sdar, block_size, temperature):
    config = SamplingConfig(
        max_new_tokens=9, block_size=block_size, strategy="sequential", temperature=temperature, stop_ids=()
    )
    for rollout in Sampler(sdar, config).generate(PROMPTS):
        found = chain(sdar, rollout.prompt_ids, rollout.token_ids, block_size)
        assert found.logp == pytest.approx(sum(rollout.logprobs), abs=1e-4)
        assert found.greedy is (temperature == 0.0)


def test_neither_depends_on_the_rows_of_a_forward(sdar):
    llada = tiny_model("llada")
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        few, many = chain(sdar, prompt, response, 4, rows=1), chain(sdar, prompt, response, 4, rows=8)
        assert few.logp == pytest.approx(many.logp, abs=1e-5) and few.greedy == many.greedy
        few, many = (bound(llada, prompt, response, samples=9, rows=rows).logp for rows in (2, 16))
        assert few == pytest.approx(many, abs=1e-5)


def exact_bound(model, prompt, response):
    """The expectation that is estimated, over all masks."""
    P, R, shift, total = len(prompt), len(response), int(model.logit_shift), 0.0
    for k in range(1, R + 1):
        for masked in itertools.combinations(range(R), k):
            ids = [*prompt, *(model.mask_id if i in masked else token for i, token in enumerate(response))]
            logp = model.logits(torch.tensor([ids]))[0].double().log_softmax(-1)
            parts = sum(logp[P + i - shift, response[i]].item() for i in masked)
            total += parts * R / k / math.comb(R, k) / R
    return total


@pytest.mark.parametrize("family", ["llada", pytest.param("dream", marks=pytest.mark.slow)])
def test_the_bound_has_the_mean_of_all_masks(family):
    model = tiny_model(family)
    prompt, response = PROMPTS[0], RESPONSES[1][:3]
    want = exact_bound(model, prompt, response)
    assert bound(model, prompt, response, samples=3000, rows=600).logp == pytest.approx(want, rel=0.03)
    one = bound(model, prompt, response[:1])
    assert one.logp == pytest.approx(exact_bound(model, prompt, response[:1]), abs=1e-5) and one.greedy is None
