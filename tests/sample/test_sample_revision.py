"""Decoding in which tokens are overwritten (edits) or return to the mask: rules, record, and one answer whatever the
way to it."""

import functools

import oracle_revision
import pytest
import torch
from capture_emulator import Emulator
from helpers import random_prompts, thinned, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import same

from sample import Sampler, SamplingConfig
from sample.choices import Choices
from sample.revision import edits, event_room, remasks
from sample.slots import Room, StepState
from sample.strategies import Proposal

PROMPTS = random_prompts([9, 1, 4, 6, 11], seed=3)
STOPS = tuple(range(2, 64, 9))
EDITS = {"edit_threshold": 0.3, "max_post_steps": 5}
CASES = {
    "edits": EDITS,
    "edits whatever their probability": {"edit_threshold": 0.0, "max_post_steps": 2, "threshold": 0.2},
    "no post steps": EDITS | {"max_post_steps": 0},
    "two a step": EDITS | {"steps_per_block": 2},
    "drawn": EDITS | {"temperature": 1.0, "top_p": 0.9},
    "by margin": EDITS | {"target": "margin_confidence"},
    "by entropy": EDITS | {"target": "neg_entropy", "strategy": "entropy_bounded", "entropy_bound": 1.5},
    "blocks of 8": EDITS | {"block_size": 8, "max_new_tokens": 19},
    "blocks of 32": EDITS | {"block_size": 32, "max_new_tokens": 20, "threshold": 0.3},
    "to the end": EDITS | {"early_stop": False},
    "remasking": {"remask_threshold": 0.3, "remask_budget": 3},
    "no budget": {"remask_threshold": 0.3, "remask_budget": 0},
    "both": EDITS | {"remask_threshold": 0.2, "remask_budget": 4, "temperature": 1.0},
}
FULL = {
    "llada": {"remask_threshold": 0.3, "remask_budget": 3},
    "dream": {"remask_threshold": 0.3, "remask_budget": 2, "strategy": "low_confidence_static", "steps_per_block": 3},
    "mmada": {"remask_threshold": 0.5, "remask_budget": 5, "temperature": 1.0, "max_post_steps": 1},
}


def config_of(**changes):
    shared = {"max_new_tokens": 10, "block_size": 4, "threshold": 0.5, "stop_ids": STOPS, "seed": 7, "max_slots": 4}
    return SamplingConfig(**shared | changes)


def agrees(rollout, want):
    answer, events = want
    same(rollout, answer)
    got = rollout.events
    assert [*zip(got.step, got.place, got.token, got.action, strict=True)] == [event[:4] for event in events]
    assert got.logprob == pytest.approx([event[4] for event in events], abs=1e-5)


@functools.cache
def usual_answers():
    return Sampler(tiny_model("sdar"), config_of(**CASES["both"])).generate(PROMPTS, n=2)


@pytest.mark.parametrize("name", thinned(CASES, 5))
def test_a_batch_equals_the_oracle(sdar, name):
    sampler = Sampler(sdar, config_of(**CASES[name]))
    for prompt, rollout in zip(PROMPTS, sampler.generate(PROMPTS), strict=True):
        agrees(rollout, oracle_revision.decode(sdar, prompt, sampler.config, rollout.key))


@pytest.mark.slow
@pytest.mark.parametrize("family", FULL)
def test_under_full_attention_tokens_return_to_the_mask_as_the_oracle_has_it(family):
    model = tiny_model(family)
    sampler = Sampler(model, config_of(**FULL[family]))
    rollouts = sampler.generate(PROMPTS)
    for prompt, rollout in zip(PROMPTS, rollouts, strict=True):
        agrees(rollout, oracle_revision.decode(model, prompt, sampler.config, rollout.key))
    assert any(model.mask_id in rollout.events.token for rollout in rollouts)


WAYS = {
    "one by one": {},
    "recompute": {"cache": "none"},
    "commits apart": {"fuse_commit": False},
    "deterministic": {"deterministic": True},
    "two slots": {"max_slots": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_batches_caches_and_slots_change_no_answer(sdar, way):
    sampler = Sampler(sdar, config_of(**CASES["both"] | WAYS[way]))
    if way == "one by one":
        got = [rollout for prompt in PROMPTS for rollout in sampler.generate([prompt], n=2)]
    else:
        got = sampler.generate(PROMPTS, n=2)
    for one, other in zip(got, usual_answers(), strict=True):
        same(one, other)
        assert one.events.token == other.events.token and one.events.step == other.events.step


@pytest.mark.slow
def test_replayed_steps_give_the_bits_of_eager_ones(sdar):
    found = []
    emulator = Emulator()
    for capture in (emulator, lambda step: step):
        sampler = Sampler(sdar, config_of(**CASES["both"]))
        sampler.capture, sampler.steps_between_polls = capture, 8
        found.append(sampler.generate(PROMPTS, n=2))
    assert found[0] == found[1] and emulator.replays > 2 * emulator.captures > 0
    for one, other in zip(found[0], usual_answers(), strict=True):
        same(one, other)
        assert one.events.token == other.events.token


@pytest.mark.slow
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.fixed_dictionaries(
        {
            "edit_threshold": st.sampled_from([None, 0.0, 0.2, 0.6]),
            "remask_threshold": st.sampled_from([None, 0.1, 0.5, 1.0]),
            "max_post_steps": st.integers(0, 4),
            "remask_budget": st.integers(0, 5),
            "block_size": st.sampled_from([1, 4, 8]),
            "temperature": st.sampled_from([0.0, 1.0]),
            "threshold": st.sampled_from([0.2, 0.9]),
        }
    ).filter(lambda chosen: chosen["edit_threshold"] is not None or chosen["remask_threshold"] is not None)
)
def test_every_state_follows_from_the_events_and_the_budgets_hold(sdar, chosen):
    b, mask = chosen["block_size"], sdar.mask_id
    for prompt, rollout in zip(PROMPTS[:3], Sampler(sdar, config_of(**chosen)).generate(PROMPTS[:3]), strict=True):
        P, events = len(prompt), rollout.events
        assert rollout.prompt_ids == prompt and events.step == sorted(events.step)
        state, at = [mask] * len(rollout.canvas_ids), 0
        remasked, post_steps = {}, {}
        for step in range(1, rollout.num_steps + 1):
            before, first = list(state), at
            while at < len(events) and events.step[at] == step:
                place, token = events.place[at], events.token[at]
                assert token != before[place] and (token == mask) == (events.action[at] == -1)
                if token == mask:
                    block = (P + place) // b
                    remasked[block] = remasked.get(block, 0) + 1
                state[place], at = token, at + 1
            places = events.place[first:at]
            assert len({(P + place) // b for place in places}) <= 1 and places == sorted(set(places))
            if places:
                block = (P + places[0]) // b
                own = [i for i in range(len(before)) if (P + i) // b == block]
                post_steps[block] = post_steps.get(block, 0) + all(before[i] != mask for i in own)
                assert all(i < own[0] or i > own[-1] or i in own for i in places)
        assert state == rollout.canvas_ids and at == len(events)
        assert max(remasked.values(), default=0) <= chosen["remask_budget"]
        assert max(post_steps.values(), default=0) <= chosen["max_post_steps"]


def test_an_edit_replaces_another_written_token_above_the_threshold():
    proposal = Proposal(torch.tensor([[5, 6, 7, 8]]), torch.zeros(1, 4), torch.tensor([[0.5, 0.9, 0.9, 0.9]]))
    ids, written = torch.tensor([[4, 6, 4, 4]]), torch.tensor([[True, True, True, False]])
    assert edits(proposal, ids, written, Choices(edit_threshold=0.5)).tolist() == [[False, False, True, False]]
    assert edits(proposal, ids, written, Choices(edit_threshold=0.0)).tolist() == [[True, False, True, False]]


def test_the_least_probable_tokens_return_to_the_mask_within_the_budget():
    held = torch.tensor([[0.3, 0.1, 0.5, 0.2, 0.0]]).expand(3, -1)
    proposal = Proposal(held.long(), held, held, held=held)
    written = torch.tensor([[True, True, True, True, False]]).expand(3, -1)
    returned = remasks(proposal, written, torch.tensor([0, 2, 9]), Choices(remask_threshold=0.5))
    places = [[place for place, is_returned in enumerate(row) if is_returned] for row in returned.tolist()]
    assert places == [[], [1, 3], [0, 1, 3]]


@pytest.mark.parametrize("name", ["edit_threshold", "remask_threshold", "max_post_steps", "remask_budget"])
def test_a_value_out_of_range_is_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"{name} is -1; it must be"):
        SamplingConfig(**{name: -1})


def test_edits_of_full_attention_and_of_pictures_are_refused_with_the_fix(sdar):
    with pytest.raises(ValueError, match=r"edit_threshold=0.0: llada has full attention.*remask_threshold"):
        SamplingConfig(edit_threshold=0.0).for_model(tiny_model("llada"))
    with pytest.raises(ValueError, match="remask_threshold is 0.5; it must be null for pictures"):
        SamplingConfig(output="image", remask_threshold=0.5)


def test_there_is_room_for_a_response_that_is_written_to_and_fro(sdar):
    chosen = {"edit_threshold": 0.0, "remask_threshold": 0.9, "max_post_steps": 60, "remask_budget": 60}
    config = config_of(**chosen, block_size=8, max_new_tokens=8, temperature=1.0, stop_ids=())
    (rollout,) = Sampler(sdar, config).generate([[5]])
    assert 64 * 15 < len(rollout.events) <= event_room(Choices(**chosen), 8, 8).events


@pytest.mark.parametrize(("b", "budget", "post"), [(1, 0, 2), (3, 0, 0), (3, 2, 1), (4, 1, 2)])
def test_the_room_is_the_most_that_any_decoding_writes(b, budget, post):
    """By going through all of them: a step begins with w written tokens, fills some masks, remasks up to r written
    ones, and edits all others or none."""

    @functools.cache
    def most(w, left, after, edits):
        if w == b and not after:
            return 0
        after -= w == b
        return max(
            fills + (w if edits else r) + most(w + fills - r, left - r, after, edits)
            for fills in range(w < b, b - w + 1)
            for r in range(min(left, w) + 1)
        )

    chosen = {"max_post_steps": post, "remask_budget": budget, "remask_threshold": 0.5}
    assert most(0, budget, post, True) == event_room(Choices(edit_threshold=0.5, **chosen), b, 1).events
    assert most(0, budget, post, False) <= b + 2 * budget == event_room(Choices(**chosen), b, 1).events


def test_the_log_takes_the_memory_that_is_planned_for():
    room = event_room(Choices(edit_threshold=0.5), 32, 1000)
    assert room.events == (16 * 33 + 32 * 16) * 33 and event_room(Choices(), 32, 1000) == Room()
    state = StepState.empty(3, 100, 1, torch.device("cpu"), room)
    held = sum(tensor.numel() * tensor.element_size() for tensor in vars(state).values())
    assert held == StepState.bytes(3, 100, room) and state.event_room == room.events
    assert StepState.bytes(3, 100) < held
