"""Greedy decodes of the reference implementations, case by case and in batches."""

import dataclasses
import json
from collections import defaultdict

import pytest
import torch
from helpers import GOLDEN, thinned

from configs.schema import TrainingConfig
from models import load_model
from sample import Sampler, SamplingConfig
from train.algorithm.packing import pack
from train.algorithm.replay import Replayer, replay

FAMILIES = ("sdar", "sdar_tied", "sdar_moe", "dream", "llada", "mmada", "llada2")
MIXTURES = ("sdar_moe", "llada2")
CASES = [(name, case) for name in FAMILIES for case in json.loads((GOLDEN / name / "decode.json").read_text())["cases"]]
MATE = list(range(60, 90))


@pytest.fixture(scope="module")
def models():
    return {name: load_model(GOLDEN / name) for name in FAMILIES}


def config_of(case):
    block = case["decoder"] == "block_cached"
    cache = {"none": "none", "prefix": "prefix", "prefix+horizon": "prefix"}
    return SamplingConfig(
        max_new_tokens=case["gen_length"],
        block_size=case["block_size"],
        steps_per_block=case["steps_per_block"],
        strategy=case["strategy"],
        threshold=case["threshold"] if case["threshold"] is not None else 0.9,
        cache="exact" if block else cache[case["cache_mode"]],
        further_horizon=None if block else case["further_horizon"],
        stop_ids=tuple(case.get("stop_ids") or ()),
        pad_id=case.get("pad_token_id"),
        pad_target_penalty=case.get("pad_target_penalty", 1.0),
    )


def ranks(steps):
    """The order of steps alone: the reference's first number and its calls without a decision differ by family."""
    known = sorted(set(steps))
    return [known.index(step) for step in steps]


def agrees(rollout, case):
    length = min(case.get("num_decided", case["gen_length"]), case["gen_length"], rollout.num_response_tokens)
    assert length == rollout.num_response_tokens
    assert rollout.token_ids == case["token_ids"][:length]
    assert ranks(rollout.step_map) == ranks(case["step_map"][:length])
    assert rollout.num_steps <= case["num_forwards"]
    if case["decoder"] == "block_cached":
        assert rollout.step_map == case["step_map"][:length]
    if "logprobs" in case:
        assert rollout.logprobs == pytest.approx(case["logprobs"][:length], abs=5e-5)
    if case.get("stopped"):
        assert rollout.finish_reason == "stop" and rollout.token_ids[-1] in case["stop_ids"]
        assert not set(rollout.token_ids[:-1]) & set(case["stop_ids"])
    else:
        assert rollout.finish_reason == "length" and length == case["gen_length"]


PLACES = [place for place, (name, _) in enumerate(CASES) if name != "llada2"]
LLADA2 = [place for place, (name, _) in enumerate(CASES) if name == "llada2"]


@pytest.mark.parametrize("place", [*thinned(PLACES, 3), *thinned(LLADA2, 9)], ids=[case["name"] for _, case in CASES])
def test_reference_decode(models, place):
    name, case = CASES[place]
    (rollout,) = Sampler(models[name], config_of(case)).generate([case["prompt_ids"]])
    agrees(rollout, case)


@pytest.mark.parametrize(
    "name", [*thinned(["mmada", "dream", "llada"], 3), pytest.param("llada2", marks=pytest.mark.slow)]
)
def test_reference_decodes_in_batches(models, name):
    """Cases of equal settings together with a longer prompt, which stands first."""
    batches = defaultdict(list)
    for case in (case for family, case in CASES if family == name):
        config = config_of(case)
        batches[dataclasses.replace(config, max_slots=2, steps_per_block=tuple(config.steps_per_block))].append(case)
    for config, cases in batches.items():
        prompts = [MATE, *(case["prompt_ids"] for case in cases)]
        for rollout, case in zip(Sampler(models[name], config).generate(prompts)[1:], cases, strict=True):
            agrees(rollout, case)


@pytest.mark.slow
@pytest.mark.parametrize("name", thinned([name for name in FAMILIES if name not in MIXTURES], 3))
def test_in_bf16_every_token_is_as_good_as_the_best_in_fp32(models, name):
    """What a decode in bf16 is defined by: in the state that it was chosen in, a token's fp32 logit is the largest, but
    for rounding; and almost all are the largest. A tie may go either way, and the decodes part there. A mixture of
    experts is left out: rounding may send a token to another expert."""
    exact, half = models[name], load_model(GOLDEN / name, dtype="bfloat16")
    gaps = []
    for case in [case for family, case in CASES if family == name][::3]:
        config = config_of(case)
        if config.cache == "prefix" or config.pad_target_penalty != 1.0:
            continue
        (rollout,) = Sampler(half, config).generate([case["prompt_ids"]])
        rows = replay(
            rollout, Replayer(half.attention, half.logit_shift, half.mask_id, config.block_size), TrainingConfig()
        )
        batch = pack(rows, range(len(rows)), torch.device("cpu"))
        with torch.no_grad():
            hidden_ND = exact.hidden(batch.ids, batch.positions, batch.layout)[0, batch.index]
            logits_NV = exact.lm_head(hidden_ND)
        logits_NV[:, exact.mask_id] = logits_NV[:, exact.text_vocab_size :] = -torch.inf
        gaps.append(logits_NV.amax(-1) - logits_NV.gather(-1, batch.targets[:, None])[:, 0])
    gap_N = torch.cat(gaps)
    assert len(gap_N) > 50 and gap_N.max() < 0.4, gap_N.max()
    assert (gap_N == 0).double().mean() > 0.95, (gap_N == 0).double().mean()
