"""Trajectory -> rows: what every row must hold, for any rollout."""

import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from trainees import random_rollout, replay_blocks

from sample import Rollout
from train.algorithm.masking import shrink_steps
from train.algorithm.packing import pack, replay_mask, within_budget
from train.algorithm.replay import TrainingSample, trained_positions
from train.learner.batch import plan_updates

MASK, PAD = 1, 0
CPU = torch.device("cpu")


@st.composite
def rollouts(draw, block_sizes=(1, 2, 4, 8)):
    """(rollout, block size) with every remainder of the prompt."""
    b = draw(st.sampled_from(block_sizes))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    prompt_tokens = draw(st.integers(1, 2 * b + 1))
    blocks = draw(st.integers(1, 4))
    return random_rollout(generator, prompt_tokens=prompt_tokens, block_size=b, blocks=blocks), b


def on_grid(rollout, b):
    return (len(rollout.prompt_ids) + np.arange(len(rollout.canvas_ids))) // b


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=30), st.integers(1, 12))
def test_shrink_merges_neighbouring_steps_of_a_group(pairs, shrink):
    group, step = (np.array([p[i] for p in pairs], dtype=np.int64) for i in (0, 1))
    shrunk = shrink_steps(step, group, shrink)
    assert (shrunk >= step).all() and ((shrunk == 0) == (step == 0)).all()
    for g in set(group.tolist()):
        old, new = step[group == g], shrunk[group == g]
        distinct = sorted(set(old.tolist()) - {0})
        sets = [distinct[i : i + shrink] for i in range(0, len(distinct), shrink)]
        want = {s: members[-1] for members in sets for s in members} | {0: 0}
        assert new.tolist() == [want[s] for s in old.tolist()]


@given(rollouts(), st.one_of(st.none(), st.integers(0, 9)))
def test_the_answer_is_trained_and_the_first_pads_after_it(case, post_num):
    rollout, _ = case
    trained = trained_positions(rollout, PAD, post_num)
    answer = rollout.num_response_tokens
    assert trained[:answer].all()
    after = np.flatnonzero(trained[answer:]) + answer
    pads = [
        i
        for i in range(answer, len(rollout.canvas_ids))
        if rollout.canvas_ids[i] == PAD and rollout.canvas_step_map[i] > 0
    ]
    assert after.tolist() == (pads if post_num is None else pads[:post_num])
    assert not trained_positions(rollout, None, post_num)[answer:].any()


def test_a_pad_that_nobody_decided_is_not_trained():
    rollout = Rollout(("a",), [5], [6, PAD, PAD], [1, 2, 0], [-0.1] * 3, 1, "length", 2)
    assert trained_positions(rollout, PAD, None).tolist() == [True, True, False]


@pytest.mark.slow
@given(rollouts(), st.integers(1, 9), st.one_of(st.none(), st.integers(0, 3)), st.booleans())
@settings(max_examples=60)
def test_rows_hold_what_the_sampler_held(case, shrink, post_num, per_round):
    rollout, b = case
    row = replay_blocks(
        rollout,
        block_size=b,
        mask_id=MASK,
        shrink=shrink,
        pad_id=PAD,
        post_num=post_num,
        per_round=per_round,
    )
    P, whole = len(rollout.prompt_ids), np.array(rollout.prompt_ids + rollout.canvas_ids)
    steps = np.concatenate(
        [np.full(P, -1), shrink_steps(np.array(rollout.canvas_step_map), on_grid(rollout, b), shrink)]
    )
    answer = rollout.num_response_tokens

    clean = row.copy == 0
    assert row.ids[clean].tolist() == whole[: clean.sum()].tolist() and MASK not in row.ids[clean]
    assert row.positions[clean].tolist() == list(range(clean.sum()))
    assert clean.sum() == max(row.block[~clean]) * b
    assert (row.block == row.positions // b).all()

    seen = {int(row.positions[i]) - P for i in row.index}
    assert seen >= set(range(answer)) and len(row.index) == len(seen)
    if not per_round:
        assert seen == set(np.flatnonzero(trained_positions(rollout, PAD, post_num)).tolist())
    assert row.canvas_index.tolist() == (row.positions[row.index] - P).tolist()
    assert row.targets.tolist() == whole[row.positions[row.index]].tolist()
    assert (row.ids[row.index] == MASK).all()

    for number in range(1, row.copy.max() + 1):
        inside = np.flatnonzero(row.copy == number)
        at = row.positions[inside]
        (block,) = set(row.block[inside].tolist())
        assert at.tolist() == list(range(block * b, block * b + b))
        trained = [i for i in row.index.tolist() if i in set(inside.tolist())]
        (step,) = {int(steps[row.positions[i]]) for i in trained}
        in_canvas = at >= P
        hidden = in_canvas & ((steps[at] >= step) | (steps[at] == 0))
        assert row.ids[inside].tolist() == np.where(hidden, MASK, whole[at]).tolist()
        earlier = {s for s in steps[at][in_canvas].tolist() if 0 < s < step}
        assert {int(row.round_index[np.flatnonzero(row.index == i)[0]]) for i in trained} == {len(earlier)}
    assert row.num_rounds == len(set(row.round_index.tolist())) <= -(-b // shrink)


@given(rollouts(), st.integers(0, 3))
@settings(max_examples=40)
def test_pads_per_round_are_limited_in_each_round(case, post_num):
    rollout, b = case
    row = replay_blocks(rollout, block_size=b, mask_id=MASK, pad_id=PAD, post_num=post_num, per_round=True)
    every = replay_blocks(rollout, block_size=b, mask_id=MASK, pad_id=PAD, post_num=None)
    for r in set(every.round_index.tolist()):
        pads = [c for c in every.canvas_index[every.round_index == r].tolist() if c >= rollout.num_response_tokens]
        kept = [c for c in row.canvas_index[row.round_index == r].tolist() if c >= rollout.num_response_tokens]
        assert kept == sorted(pads)[:post_num]


def test_nothing_to_train_is_no_row():
    undecided = Rollout(("a",), [5, 6], [MASK, MASK], [0, 0], [0.0, 0.0], 0, "length", 0)
    assert replay_blocks(undecided, block_size=4, mask_id=MASK) is None


def row_of(tokens, rounds, key="row"):
    """A row of the given size whose contents do not matter."""
    zeros = np.zeros(tokens, dtype=np.int64)
    at = np.array([tokens - 1])
    return TrainingSample(
        (key,), zeros, np.arange(tokens), zeros, zeros, at, at * 0, at * 0, at * 0, at * 0, rounds, np.ones(1)
    )


@pytest.mark.slow
@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 30), st.integers(0, 99))
def test_updates_cover_every_response_once(rounds, rows_per_update, seed):
    rows = [row_of(1, r, key) for key, r in enumerate(rounds)]
    updates = plan_updates(rows, rows_per_update, [seed, 1, 0])
    assert sorted(i for update in updates for i in update) == list(range(len(rows)))
    assert updates == plan_updates(rows, rows_per_update, [seed, 1, 0])
    for number, update in enumerate(updates):
        counts = [rounds[i] for i in update]
        assert sum(counts[:-1]) < rows_per_update
        assert number == len(updates) - 1 or sum(counts) >= rows_per_update


def test_the_order_of_updates_follows_the_seed():
    rows = [row_of(1, 1, key) for key in range(50)]
    orders = {tuple(map(tuple, plan_updates(rows, 8, seed))) for seed in ([1, 1, 0], [1, 2, 0], [1, 1, 1], [2, 1, 0])}
    assert len(orders) == 4


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 200))
def test_micro_batches_cover_rows_within_the_budget(lengths, max_tokens):
    rows = [row_of(n, 1) for n in lengths]
    which = list(range(0, len(rows), 2))
    batches = [pack(rows, group, CPU) for group in within_budget(rows, which, max_tokens)]
    assert sorted(i for batch in batches for i in batch.samples) == which
    for batch in batches:
        assert batch.ids.shape[1] == sum(lengths[i] for i in batch.samples)
        assert batch.ids.shape[1] <= max_tokens or len(batch.samples) == 1
        assert [batch.samples[place] for place in batch.sample_of_N] == list(batch.samples)


def sees(row, q, k):
    if row.copy[q] == 0:
        return row.copy[k] == 0 and row.block[k] <= row.block[q]
    return (row.copy[k] == 0 and row.block[k] < row.block[q]) or row.copy[k] == row.copy[q]


@given(rollouts(block_sizes=(2, 4)))
@settings(max_examples=30)
def test_mask_against_two_loops(case):
    rollout, b = case
    row = replay_blocks(rollout, block_size=b, mask_id=MASK)
    block, copy = torch.from_numpy(row.block), torch.from_numpy(row.copy)
    places = range(row.num_tokens)
    mask = replay_mask(block, copy)
    assert mask.any(-1).all()
    assert mask.tolist() == [[bool(sees(row, q, k)) for k in places] for q in places]


def seen_through_spans(layout):
    """Pairs (query, key) on the packed axis that attention lets through."""
    start = 0
    for row in layout.rows:
        shared = []
        for span in row:
            masks = [span.mask_QQ] if span.rows == 1 else list(span.mask_QQ)
            assert len(masks) == span.rows and (span.rows == 1 or len(row) == 1)
            for own in masks:
                queries = range(start, start + span.num_shared + span.num_own)
                keys = [*shared, *queries]
                own = torch.ones(len(queries), len(queries), dtype=torch.bool) if own is None else own
                assert own.shape == (len(queries), len(queries))
                mask = torch.cat([torch.ones(len(queries), len(shared), dtype=torch.bool), own], dim=1)
                yield from ((queries[q], keys[k]) for q, k in mask.nonzero().tolist())
                start = queries.stop
            shared += queries[: span.num_shared]


@pytest.mark.parametrize("span_tokens", [1, 9, 10_000])
@given(cases=st.lists(rollouts(block_sizes=(4,)), min_size=1, max_size=4))
@settings(max_examples=12)
def test_packing_moves_tokens_and_keeps_what_they_see(span_tokens, cases):
    rows = [replay_blocks(rollout, block_size=b, mask_id=MASK) for rollout, b in cases]
    starts = np.cumsum([0] + [row.num_tokens for row in rows]).tolist()
    marked = [
        dataclasses.replace(row, ids=start + np.arange(row.num_tokens))
        for row, start in zip(rows, starts, strict=False)
    ]
    with mock.patch("train.algorithm.packing._SPAN_TOKENS_CPU", span_tokens):
        batch, mark = pack(rows, range(len(rows)), CPU), pack(marked, range(len(rows)), CPU).ids[0]
    whole_ids, whole_positions = (np.concatenate([getattr(row, x) for row in rows]) for x in ("ids", "positions"))
    assert batch.ids.shape == batch.positions.shape == (1, starts[-1])
    assert sorted(mark.tolist()) == list(range(starts[-1]))
    assert np.array_equal(batch.ids[0], whole_ids[mark]) and np.array_equal(batch.positions[0], whole_positions[mark])
    assert mark[batch.index].tolist() == [
        start + i for row, start in zip(rows, starts, strict=False) for i in row.index.tolist()
    ]
    assert batch.targets.tolist() == [t for row in rows for t in row.targets.tolist()]
    assert (batch.ids[0, batch.index] == MASK).all()
    want = {
        (start + q, start + k)
        for row, start in zip(rows, starts, strict=False)
        for q in range(row.num_tokens)
        for k in range(row.num_tokens)
        if sees(row, q, k)
    }
    got = [(int(mark[q]), int(mark[k])) for q, k in seen_through_spans(batch.layout)]
    assert len(got) == len(want) and set(got) == want


def test_rows_of_one_response_do_not_depend_on_its_key():
    rollout = random_rollout(np.random.default_rng(1), prompt_tokens=6, block_size=4)
    first, second = (
        replay_blocks(dataclasses.replace(rollout, key=key), block_size=4, mask_id=MASK) for key in (("a",), ("b", 2))
    )
    assert first.key == ("a",) and second.key == ("b", 2)
    for field in dataclasses.fields(TrainingSample)[1:]:
        assert np.array_equal(getattr(first, field.name), getattr(second, field.name))


@pytest.mark.parametrize("post_num", [0, None])
def test_a_worked_example(post_num):
    """Prompt 10..14, blocks of 4: the tail (14) opens block 1; answer 20 21 22 | 23 2, then a pad and a mask."""
    rollout = Rollout(
        key=("a",),
        prompt_ids=[10, 11, 12, 13, 14],
        canvas_ids=[20, 21, 22, 23, 2, PAD, MASK],
        canvas_step_map=[2, 1, 2, 4, 3, 4, 0],
        canvas_logprobs=[-0.1] * 7,
        num_response_tokens=5,
        finish_reason="stop",
        num_steps=4,
    )
    row = replay_blocks(rollout, block_size=4, mask_id=MASK, pad_id=PAD, post_num=post_num)
    assert row.ids.tolist() == [
        *(10, 11, 12, 13, 14, 20, 21, 22),
        *(14, MASK, MASK, MASK),
        *(14, MASK, 21, MASK),
        *(MASK, MASK, MASK, MASK),
        *(MASK, 2, MASK, MASK),
    ]
    assert row.copy.tolist() == [0] * 8 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    pads = [5] if post_num is None else []
    assert row.canvas_index.tolist() == [1, 0, 2, 4, 3, *pads]
    assert row.round_index.tolist() == [0, 1, 1, 0, 1, *([1] if pads else [])]
    assert row.num_rounds == 2


def test_masks_grow_with_the_length_and_not_with_its_square():
    generator = np.random.default_rng(0)
    sizes = {}
    for blocks in (200, 800):
        row = replay_blocks(
            random_rollout(generator, prompt_tokens=8, block_size=4, blocks=blocks), block_size=4, mask_id=MASK
        )
        (spans,) = pack([row], [0], CPU).layout.rows
        sizes[blocks] = sum(span.mask_QQ.numel() for span in spans)
    assert sizes[800] < 6 * sizes[200]


@pytest.mark.long
@pytest.mark.slow
def test_an_answer_of_eight_thousand_tokens_under_gradient_checkpointing():
    """Long chains of thought: one row, the same gradients with and without recomputing."""
    rollout = random_rollout(np.random.default_rng(0), prompt_tokens=64, block_size=4, blocks=2016, vocab_size=64)
    row = replay_blocks(rollout, block_size=4, mask_id=MASK)
    batch = pack([row], [0], CPU)
    gradients = []
    for recompute in (False, True):
        model = tiny_model("sdar", max_position_embeddings=16384, num_hidden_layers=1).train()
        if recompute:
            model.enable_gradient_checkpointing()
        model(batch.ids, batch.positions, batch.layout, batch.index, batch.targets).mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert row.num_tokens > 16_000 and torch.allclose(*gradients, atol=1e-7)


def test_rows_of_one_size_side_by_side_are_scored_as_apart():
    generator = np.random.default_rng(3)
    rollouts = [random_rollout(generator, prompt_tokens=5, block_size=4, blocks=3) for _ in range(12)]
    rows = [replay_blocks(rollout, block_size=4, mask_id=MASK) for rollout in rollouts]
    rows.sort(key=lambda row: -row.num_tokens)
    model = tiny_model("sdar")
    together = pack(rows, range(12), CPU)
    assert any(span.rows > 1 for row in together.layout.rows for span in row)
    apart = [pack([row], [0], CPU) for row in rows]
    with torch.no_grad():
        got, *want = (model(b.ids, b.positions, b.layout, b.index, b.targets) for b in (together, *apart))
    assert torch.allclose(got, torch.cat(want), atol=1e-5)
