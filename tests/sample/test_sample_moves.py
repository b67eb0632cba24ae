"""Decoding in which edits delete and insert tokens (LLaDA2.2): rules, record, and one answer whatever the way to it."""

import copy
import dataclasses
import functools
import json

import oracle_moves
import pytest
import torch
from capture_emulator import Emulator
from helpers import random_prompts, thinned, tiny_model
from oracle import same

from models.spec import delete_insert_ids
from sample import Events, Rollout, Sampler, SamplingConfig
from sample.choices import Choices
from sample.draw import Drawing
from sample.moves import Moves, moved, needed
from sample.revision import event_room
from sample.slots import StepState

PROMPTS = random_prompts([9, 1, 4, 6, 11], seed=3)
DELETE, INSERT = 40, 41
EDITS = {"edit_threshold": 0.3, "max_post_steps": 5}
CASES = {
    "edits": EDITS,
    "edits whatever their probability": {"edit_threshold": 0.0, "max_post_steps": 4, "threshold": 0.2},
    "no post steps": EDITS | {"max_post_steps": 0},
    "two a step": EDITS | {"steps_per_block": 2},
    "drawn": EDITS | {"temperature": 1.0, "top_p": 0.9},
    "drawn from all": EDITS | {"temperature": 1.0, "edit_threshold": 0.0},
    "by margin": EDITS | {"target": "margin_confidence"},
    "the schedule's share": EDITS | {"strategy": "low_confidence_static", "steps_per_block": 3},
    "blocks of 8": EDITS | {"block_size": 8, "max_new_tokens": 19, "edit_threshold": 0.0, "max_post_steps": 8},
    "to the end": EDITS | {"early_stop": False},
    "blocks of 32": EDITS | {"block_size": 32, "max_new_tokens": 20, "threshold": 0.3, "edit_threshold": 0.0},
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


@pytest.mark.parametrize("name", [*thinned([*CASES][:-1], 4), pytest.param([*CASES][-1], marks=pytest.mark.long)])
def test_a_batch_equals_the_oracle(name):
    model, sampler = moving_model(), Sampler(moving_model(), config_of(**CASES[name]))
    for prompt, rollout in zip(PROMPTS, sampler.generate(PROMPTS), strict=True):
        agrees(rollout, oracle_moves.decode(model, prompt, sampler.config, rollout.key))
        assert not {DELETE, INSERT} & {*rollout.canvas_ids} and model.mask_id not in rollout.canvas_ids


@pytest.mark.parametrize("likely", [DELETE, INSERT])
def test_a_block_in_which_nothing_else_is_chosen_ends_and_is_full(likely):
    model = copy.deepcopy(moving_model())
    model.lm_head.bias = torch.nn.Parameter(7.0 * (torch.arange(64) == likely))
    sampler = Sampler(model, config_of(edit_threshold=0.3, max_post_steps=3, max_new_tokens=3))
    (rollout,) = sampler.generate([[5]])
    agrees(rollout, oracle_moves.decode(model, [5], sampler.config, rollout.key))
    assert model.mask_id not in rollout.canvas_ids and rollout.events.action.count(likely) > 2


def test_the_last_of_a_blocks_most_steps_is_final_whatever_is_masked():
    moves = Moves(Choices(edit_threshold=0.5, delete_insert_ids=(7, 8), max_post_steps=3), 1, torch.tensor([4]), 4)
    state = StepState.empty(3, 8, 1, torch.device("cpu"), event_room(moves.choices, 4, 4))
    state.block_step += torch.tensor([10, 11, 11])
    masked = torch.ones(3, 4, dtype=torch.bool)
    assert moves._last(state, ~masked, masked, torch.tensor([True, True, False])).tolist() == [False, True, False]


WAYS = {
    "one by one": {},
    "recompute": {"cache": "none"},
    "commits apart": {"fuse_commit": False},
    "deterministic": {"deterministic": True},
    "two slots": {"max_slots": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_batches_caches_and_slots_change_no_answer(way):
    sampler = Sampler(moving_model(), config_of(**CASES["drawn from all"] | WAYS[way]))
    if way == "one by one":
        got = [rollout for prompt in PROMPTS for rollout in sampler.generate([prompt], n=2)]
    else:
        got = sampler.generate(PROMPTS, n=2)
    for one, other in zip(got, usual_answers(), strict=True):
        same(one, other)
        assert {**vars(one.events), "logprob": []} == {**vars(other.events), "logprob": []}


@pytest.mark.slow
def test_replayed_steps_give_the_bits_of_eager_ones():
    found = []
    emulator = Emulator()
    for capture in (emulator, lambda step: step):
        sampler = Sampler(moving_model(), config_of(**CASES["drawn from all"]))
        sampler.capture, sampler.steps_between_polls = capture, 8
        found.append(sampler.generate(PROMPTS, n=2))
    assert found[0] == found[1] and emulator.replays > 2 * emulator.captures > 0
    for one, other in zip(found[0], usual_answers(), strict=True):
        same(one, other)
        assert one.events.source == other.events.source


def written(block):
    """Of a block of letters: D deletes, I inserts, the others are what is written there; what stood there before has
    the same letter, or a small one."""
    old, new = block.split()
    found = moved(*(torch.tensor([[letter == kind for letter in new]]) for kind in "DI"))
    rows = zip(*(column[0].tolist() for column in found), strict=True)
    return "".join("M" if made else (old if restored else new)[source] for source, made, restored in rows)


@pytest.mark.parametrize(
    ("block", "after"),
    [
        ("1234 1D34", "134M"),
        ("1234 1I34", "1M23"),
        ("1234 D2I4", "2M34"),
        ("1234 5678", "5678"),
        ("1234 DDDD", "MMMM"),
        ("1234 IIII", "M1M2"),
        ("1234 123I", "123M"),
        ("12M4 1DI4", "1MM4"),
        ("1234 5I78", "5M27"),
    ],
)
def test_a_block_is_read_from_left_to_right(block, after):
    """The first three are LLaDA2.2's own examples."""
    assert written(block) == after


def test_a_step_fills_its_share_of_the_first_masks_and_as_many_as_edits_made():
    step, steps = torch.arange(5), torch.full((5,), 3)
    assert needed(step, steps, torch.full((5,), 7), torch.tensor([0, 1, 0, 0, 2])).tolist() == [3, 3, 2, 7, 9]


def test_without_edits_delete_and_insert_are_never_chosen():
    config = config_of(stop_ids=(), max_new_tokens=24)
    model = copy.deepcopy(moving_model())
    model.text_vocab_size = 64
    rollouts = Sampler(model, config).generate(PROMPTS)
    model.spec = dataclasses.replace(model.spec, raw={**model.spec.raw, "delete_token_id": None})
    with_them = Sampler(model, config).generate(PROMPTS)
    assert not any({DELETE, INSERT} & {*rollout.token_ids} for rollout in rollouts)
    assert any({DELETE, INSERT} & {*rollout.token_ids} for rollout in with_them)


def test_a_checkpoint_names_delete_and_insert_or_has_neither():
    assert delete_insert_ids(moving_model().spec) == (DELETE, INSERT)
    for config in ({"delete_token_id": DELETE, "split_token_id": INSERT}, {"expert_capacity": 3}):
        assert delete_insert_ids(tiny_model("llada2", **config).spec) is None
    for ids in ((DELETE, DELETE), (DELETE, 64)):
        with pytest.raises(ValueError, match=rf"config.json.*DELETE and INSERT {ids[0]} and {ids[1]}, which must be"):
            tiny_model("llada2", expert_capacity=3, delete_token_id=ids[0], split_token_id=ids[1])


def test_remasking_beside_them_is_refused_with_the_fix():
    config = config_of(edit_threshold=0.3, remask_threshold=0.1)
    with pytest.raises(ValueError, match=r"remask_threshold=0.1: edits of this model delete and insert.*Leave it out"):
        config.for_model(moving_model())
    config_of(remask_threshold=0.1).for_model(moving_model())


MASK = 99
HAND = [  # one block of four; 7 deletes, 8 inserts: (step, place, token, action, logprob, source)
    (1, 0, 10, 10, -0.1, -1),
    (1, 1, 20, 20, -0.2, -1),
    (1, 2, 30, 30, -0.3, -1),
    (2, 0, 20, 7, -0.4, 1),
    (2, 1, 31, 20, -0.5, 2),
    (2, 2, 40, 31, -0.6, 3),
    (2, 3, MASK, 40, -0.7, -1),
    (3, 0, MASK, 8, -0.8, -1),
    (3, 1, 20, -1, 0.0, 0),
    (3, 2, 31, -1, 0.0, 1),
    (3, 3, 40, 41, -0.9, 2),
    (4, 0, 11, 11, -1.0, -1),
]


def by_hand(rows=HAND, **changes):
    """20 is written anew where it stands as it moves; 41 is cut off."""
    events = Events(*(list(column) for column in zip(*rows, strict=True)), (7, 8))
    given = {
        "canvas_ids": [11, 20, 31, 40],
        "canvas_step_map": [4, 2, 2, 2],
        "canvas_logprobs": [-1.0, -0.5, -0.6, -0.7],
    }
    return Rollout(
        (1,), [5] * 4, **given | changes, num_response_tokens=4, finish_reason="length", num_steps=4, events=events
    )


def test_a_token_keeps_its_step_and_log_probability_where_it_moves():
    rollout = by_hand()
    assert rollout.events.standing(4).tolist() == [11, 4, 5, 6]
    assert Rollout.from_dict(json.loads(rollout.to_json())) == rollout
    assert rollout.events.overwrites().nonzero()[0].tolist() == [5] and not rollout.events.remasks().any()


@pytest.mark.parametrize(
    "damage",
    [
        {"canvas_step_map": [4, 3, 2, 2]},
        {"canvas_logprobs": [-1.0, -0.5, -0.3, -0.7]},
        {"canvas_ids": [11, 20, 30, 40]},
        {"canvas_step_map": [4, 2, 2, 0]},
    ],
)
def test_a_record_that_does_not_follow_from_its_moves_is_damaged(damage):
    with pytest.raises(ValueError, match="another token, step or log-probability at place"):
        Rollout.from_dict(json.loads(by_hand(**damage).to_json()))


def test_moves_without_their_ids_or_from_outside_are_damaged():
    row = json.loads(by_hand().to_json())
    del row["events"]["delete_insert_ids"]
    with pytest.raises(ValueError, match="events that move without the two delete_insert_ids"):
        Rollout.from_dict(row)
    with pytest.raises(ValueError, match="events outside its 4 places"):
        Rollout.from_dict(json.loads(by_hand([*HAND[:-1], (4, 0, 11, 11, -1.0, 4)]).to_json()))


def test_the_slots_take_the_memory_that_is_planned_for():
    room = event_room(Choices(edit_threshold=0.5, delete_insert_ids=(7, 8), max_post_steps=6), 8, 20)
    assert room == (22 * 8 * 4, 22, 8)
    state = StepState.empty(3, 100, 1, torch.device("cpu"), room)
    held = sum(tensor.numel() * tensor.element_size() for tensor in vars(state).values())
    assert held == StepState.bytes(3, 100, room)


@pytest.mark.slow
def test_requests_of_a_session_that_draw_each_in_its_own_way_get_the_answers_of_generate():
    session = Sampler(moving_model(), config_of(**CASES["drawn from all"])).session(64)
    drawings = [
        Drawing(0.0, 0, 1.0),
        Drawing(1.0, 0, 1.0),
        Drawing(0.8, 9, 0.9),
        Drawing(1.0, 1, 1.0),
        Drawing(0.0, 0, 1.0),
    ]
    for prompt, drawing in zip(PROMPTS, drawings, strict=True):
        session.add(prompt, drawing=drawing)
    found = {}
    while session.running or session.waiting:
        found |= {update.index: update.rollout for update in session.poll() if update.rollout is not None}
    for index, (prompt, drawing) in enumerate(zip(PROMPTS, drawings, strict=True)):
        (want,) = Sampler(moving_model(), config_of(**CASES["drawn from all"] | drawing._asdict())).generate([prompt])
        same(found[index], want)
        assert found[index].events.action == want.events.action
