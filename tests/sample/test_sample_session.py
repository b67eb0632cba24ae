"""A session: requests that come while others are decoded get the answers that `generate` gives under their settings."""

import random

import pytest
import torch
from capture_emulator import Emulator
from helpers import random_prompts, tiny_model
from oracle import same

from sample import Sampler, SamplingConfig
from sample.draw import Drawing, Drawings, Mix, filtered, filtered_each

STOPS = tuple(range(2, 64, 9))
PROMPTS = random_prompts([9, 1, 6, 23, 12, 7, 3], seed=5)
DRAWINGS = [
    Drawing(0.0, 0, 1.0),
    Drawing(1.0, 0, 1.0),
    Drawing(0.7, 0, 0.8),
    Drawing(1.3, 9, 1.0),
    Drawing(0.9, 5, 0.7),
    Drawing(0.8, 1, 1.0),
]
CASES = [
    ("sdar", {}),
    ("llada", {"steps_per_block": 3}),
    ("dream", {"steps_per_block": 4}),
    ("llada", {"cache": "dual"}),
    ("sdar", {"edit_threshold": 0.2, "max_post_steps": 3}),
    ("llada", {"remask_threshold": 0.3}),
]


def config_of(**settings):
    shared = {"max_new_tokens": 18, "block_size": 4, "threshold": 0.4, "stop_ids": STOPS, "max_slots": 3}
    return SamplingConfig(**shared | settings)


def requests(n=2):
    """(prompt, settings of `Session.add`), every drawing, length and seed among them."""
    return [
        (prompt, {"n": n, "max_new_tokens": 5 + 3 * (i % 5), "seed": i, "drawing": DRAWINGS[i % len(DRAWINGS)]})
        for i, prompt in enumerate(PROMPTS)
    ]


def alone(model, prompt, settings, **config):
    """What `generate` gives under a config with the request's settings."""
    own = dict(settings, **settings["drawing"]._asdict())
    own.pop("drawing")
    n = own.pop("n")
    return Sampler(model, config_of(**config | own)).generate([prompt], n=n)


def drained(session):
    """Index -> rollout of all that is asked for, checked against what was handed out on the way."""
    handed, found = {}, {}
    while session.waiting or session.running:
        for update in session.poll():
            columns = handed.setdefault(update.index, ([], [], []))
            for column, new in zip(columns, (update.ids, update.step_map, update.logprobs), strict=True):
                column.extend(new)
            if update.rollout is not None:
                found[update.index] = update.rollout
    for index, rollout in found.items():
        assert handed[index] == (rollout.token_ids, rollout.step_map, rollout.logprobs)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_requests_that_come_while_others_run_get_the_answers_of_generate(case):
    family, config = case
    model = tiny_model(family)
    session = Sampler(model, config_of(**config)).session(64)
    indices, found, draw = [], {}, random.Random(0)
    for prompt, settings in requests():
        indices.append(session.add(prompt, **settings))
        for _ in range(draw.randrange(4)):
            found |= {update.index: update.rollout for update in session.poll() if update.rollout}
    found |= drained_rest(session)
    for of_prompt, (prompt, settings) in zip(indices, requests(), strict=True):
        for index, want in zip(of_prompt, alone(model, prompt, settings, **config), strict=True):
            same(found[index], want)


def drained_rest(session):
    found = {}
    while session.waiting or session.running:
        found |= {update.index: update.rollout for update in session.poll() if update.rollout}
    return found


@pytest.mark.slow
def test_blocks_are_handed_out_as_they_are_final_and_add_up_to_the_response(sdar):
    session = Sampler(sdar, config_of()).session(64)
    for prompt, settings in requests():
        session.add(prompt, **settings)
    assert len(drained(session)) == 2 * len(PROMPTS)


@pytest.mark.parametrize("capture", [None, pytest.param(Emulator(), marks=pytest.mark.slow)], ids=["eager", "captured"])
def test_other_requests_and_their_drawings_do_not_change_a_bit(sdar, capture):
    """Deterministic mode; the last request draws from a filtered distribution, runs alone, among greedy ones, among
    all."""
    (prompt, settings), others = requests()[4], requests()[:4] + requests()[5:]

    def run(beside):
        sampler = Sampler(sdar, config_of(deterministic=True, max_slots=6))
        sampler.capture = capture
        session = sampler.session(64)
        before = [session.add(*pair[:1], **pair[1]) for pair in beside[: len(beside) // 2]]
        session.poll()
        indices = session.add(prompt, **settings)
        for pair in beside[len(before) :]:
            session.add(pair[0], **pair[1])
        found = drained_rest(session)
        return [found[index] for index in indices]

    want = run([])
    greedy = [(p, dict(s, drawing=DRAWINGS[0])) for p, s in others]
    assert run(greedy) == run(others) == want


@pytest.mark.slow
def test_a_cancelled_request_frees_its_slot_and_changes_no_other(sdar):
    session = Sampler(sdar, config_of(max_slots=2, stop_ids=())).session(64)
    asked = [session.add(prompt, n=1, seed=i)[0] for i, prompt in enumerate(PROMPTS)]
    session.poll()
    assert (session.running, session.waiting) == (2, 5)
    session.cancel(asked[0])  # has a slot
    session.cancel(asked[3])  # waits
    assert (session.running, session.waiting) == (1, 4)
    session.poll()
    assert session.running == 2
    found = drained_rest(session)
    session.cancel(asked[1])  # has ended: nothing
    assert sorted(found) == [i for i in asked if i not in (asked[0], asked[3])]
    for i, rollout in found.items():
        (want,) = Sampler(sdar, config_of(stop_ids=(), seed=asked.index(i))).generate([PROMPTS[asked.index(i)]])
        same(rollout, want)


def test_a_prompt_is_found_again_where_its_slot_was_moved_to(sdar):
    """Siblings of a group come after a sequence was moved into the hole that another left."""
    session = Sampler(sdar, config_of(max_slots=3, max_new_tokens=12)).session(64)
    short = session.add(PROMPTS[0], max_new_tokens=1)
    group = session.add(PROMPTS[3], n=5, seed=3)
    found = drained_rest(session)
    want = Sampler(sdar, config_of(max_new_tokens=12, seed=3)).generate([PROMPTS[3]], n=5)
    for index, rollout in zip(group, want, strict=True):
        same(found[index], rollout)
    assert short[0] in found


def test_the_canvas_shows_what_stands_in_a_block_that_is_not_final(sdar):
    session = Sampler(sdar, config_of(max_slots=1, strategy="sequential", stop_ids=())).session(64)
    (index,) = session.add([5, 6, 7, 8], max_new_tokens=6)
    assert session.canvas(index) == ([], [])
    session.poll()
    ids, steps = session.canvas(index)
    assert len(ids) == len(steps) == 6 and steps == [1, 0, 0, 0, 0, 0] and ids.count(sdar.mask_id) == 5


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([], {}, "empty"),
        ([5] * 50, {}, "64 in all"),
        ([5], {"max_new_tokens": 19}, "at most 18 tokens of an answer"),
        ([5], {"max_new_tokens": 0}, "at most 18 tokens of an answer"),
        ([1], {}, "mask id"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(sdar, prompt, settings, message):
    session = Sampler(sdar, config_of()).session(64)
    with pytest.raises(ValueError, match=message):
        session.add(prompt, **settings)
    assert session.poll() == []


def test_a_session_needs_the_models_positions_and_early_stops(sdar):
    with pytest.raises(ValueError, match="512 positions"):
        Sampler(sdar, config_of()).session(513)
    with pytest.raises(ValueError, match="early_stop"):
        Sampler(sdar, config_of(early_stop=False)).session(64)


def test_filters_of_each_row_are_those_of_all_rows():
    logits = torch.randn(len(DRAWINGS), 300, generator=torch.Generator().manual_seed(0)).mul(4).round() / 2  # ties
    logits[:, 7] = -torch.inf
    columns = [torch.tensor(column) for column in zip(*DRAWINGS, strict=True)]
    got = filtered_each(logits, Drawings(Mix(True, True), *columns))
    for row, drawing, own in zip(logits, DRAWINGS, got, strict=True):
        want = filtered(row[None], drawing.temperature or 1.0, drawing.top_k, drawing.top_p)[0]
        assert torch.equal(own, want)
