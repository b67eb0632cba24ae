"""Decodes of LLaDA2.1's own generate, in which tokens are overwritten: one by one and in batches."""

import json
from collections import defaultdict

import pytest
from helpers import GOLDEN, thinned

from models import load_model
from sample import Sampler, SamplingConfig

CASES = json.loads((GOLDEN / "llada2" / "decode_edits.json").read_text())["cases"]
CASES = [case for case in CASES if case["num_to_transfer"] < 3 or case["block_size"] > 4]
"""Three a step in a block of four is no number of steps."""


@pytest.fixture(scope="module")
def model():
    return load_model(GOLDEN / "llada2")


def config_of(case):
    names = ("block_size", "threshold", "edit_threshold", "max_post_steps")
    steps = -(-case["block_size"] // case["num_to_transfer"])
    chosen = {name: case[name] for name in names} | {"steps_per_block": steps, "stop_ids": tuple(case["stop_ids"])}
    return SamplingConfig(max_new_tokens=case["gen_length"], max_slots=2, **chosen)


def agrees(rollout, case):
    events, before, found = rollout.events, {}, []
    for step, place, token in zip(events.step, events.place, events.token, strict=True):
        found.append([step, place, before.get(place, 255), token])
        before[place] = token
    assert found == case["events"] and events.action == events.token
    assert events.logprob == pytest.approx(case["event_logprobs"], abs=1e-4)
    decided = case["num_decided"]
    assert rollout.canvas_ids[:decided] == case["token_ids"][:decided]
    assert rollout.canvas_step_map[:decided] == case["step_map"][:decided]
    assert rollout.canvas_logprobs[:decided] == pytest.approx(case["logprobs"][:decided], abs=1e-4)
    assert rollout.num_steps == case["num_forwards"]
    assert rollout.finish_reason == ("stop" if case["stopped"] else "length")
    if case["stopped"]:
        (first, *_) = (i for i, token in enumerate(case["token_ids"]) if token in case["stop_ids"])
        assert rollout.num_response_tokens == first + 1


@pytest.mark.parametrize("case", thinned(CASES, 15), ids=lambda case: case["name"])
def test_an_edited_decode_of_the_original(model, case):
    (rollout,) = Sampler(model, config_of(case)).generate([case["prompt_ids"]])
    agrees(rollout, case)


@pytest.mark.slow
def test_edited_decodes_of_the_original_in_batches(model):
    """Cases of equal settings together with a longer prompt, which stands first."""
    batches = defaultdict(list)
    for case in CASES:
        batches[config_of(case)].append(case)
    batches = {config: cases for config, cases in batches.items() if len(cases) > 1}
    assert len(batches) > 2
    for config, cases in batches.items():
        prompts = [list(range(60, 90)), *(case["prompt_ids"] for case in cases)]
        for rollout, case in zip(Sampler(model, config).generate(prompts)[1:], cases, strict=True):
            agrees(rollout, case)
