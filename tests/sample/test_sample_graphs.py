"""Captured steps: replayed for whole calls of `generate` they give the bits of the same steps run eagerly."""

import logging
import math

import pytest
import torch
from capture_emulator import Emulator
from helpers import random_prompts, thinned, tiny_model
from oracle import same

from models import DiffusionLM
from models.checkpoint import empty_network
from sample import Sampler, SamplingConfig
from sample.denoiser import Denoiser
from sample.graphs import CommitBudget, bucket, commit_spans
from sample.slots import SlotKV, StepState
from sample.spans import Bounds, ExactBlockCache, longest_waiting
from sample.strategies import STRATEGIES, Strategy, low_confidence_static

PROMPTS = random_prompts([9, 1, 6, 23, 12, 7, 3], seed=3)
STOPS = tuple(range(2, 64, 9))
DRAWS = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 1.0},
    "filtered": {"temperature": 0.7, "top_k": 9, "top_p": 0.8},
}
CASES = [
    (strategy, block_size, draw)
    for i, strategy in enumerate(STRATEGIES)
    for block_size in (4, 16)
    for draw in list(DRAWS)[i % 3 :][:1]
] + [("low_confidence_dynamic", 4, draw) for draw in DRAWS]


def eager(step):
    """The same steps under the same shapes, operation by operation."""
    return step


def sampler_of(model, capture=None, **settings):
    settings = {"max_new_tokens": 18, "threshold": 0.4, "stop_ids": STOPS, "max_slots": 5, "seed": 7} | settings
    sampler = Sampler(model, SamplingConfig(**settings))
    sampler.capture = capture
    sampler.steps_between_polls = 1 if capture is None else 8
    return sampler


def settings_of(case):
    strategy, block_size, draw = case
    return {"strategy": strategy, "block_size": block_size, "steps_per_block": block_size // 2} | DRAWS[draw]


@pytest.mark.slow
@pytest.mark.parametrize("case", thinned(CASES, 5), ids=lambda c: "-".join(map(str, c)))
def test_replayed_steps_give_the_bits_of_eager_ones_and_the_usual_answers(sdar, case):
    """Admissions, stops, commit budgets and a queue that runs dry: 14 responses in 5 slots, twice."""
    emulator = Emulator()
    replayed = sampler_of(sdar, emulator, **settings_of(case))
    want = sampler_of(sdar, eager, **settings_of(case)).generate(PROMPTS, n=2)
    first = replayed.generate(PROMPTS, n=2)
    captured = emulator.captures
    assert first == replayed.generate(PROMPTS, n=2) == want
    buckets = {key.slots for key in replayed._held.steps.keys}
    assert captured == emulator.captures == replayed.captured_keys <= 3 * len(buckets)
    assert emulator.replays > 4 * captured
    for a, b in zip(want, sampler_of(sdar, **settings_of(case)).generate(PROMPTS, n=2), strict=True):
        same(a, b)


@pytest.mark.slow
def test_a_deterministic_run_has_one_key_and_the_bits_of_one_without_captures(sdar):
    settings = {"deterministic": True, "temperature": 1.0}
    replayed = sampler_of(sdar, Emulator(), **settings)
    assert replayed.generate(PROMPTS) == sampler_of(sdar, **settings).generate(PROMPTS)
    assert replayed.captured_keys == 1


def addresses(sampler):
    held = sampler._held
    state = {name: tensor.data_ptr() for name, tensor in vars(held.state).items()}
    weights = {name: p.data_ptr() for name, p in sampler.model.named_parameters()}
    return state | weights | {"pool": held.kv.pool.data_ptr(), "offsets": held.cache.offset_b.data_ptr()}


@pytest.mark.slow
def test_addresses_stay_over_calls_and_updates_and_replays_see_new_weights():
    model, other = tiny_model("sdar", seed=0), tiny_model("sdar", seed=1)
    emulator = Emulator()
    sampler = sampler_of(model, emulator)
    sampler.keep_slots(5, 40)
    before = sampler.generate(PROMPTS)
    where, captured = addresses(sampler), emulator.captures
    sampler.update_weights(other.named_parameters())
    after = sampler.generate(PROMPTS)
    sampler.generate(random_prompts([40, 2], seed=1))
    assert addresses(sampler) == where and before != after
    again = sampler_of(other, eager)
    again.weights_version = 1
    assert after == again.generate(PROMPTS)
    assert captured < emulator.captures == sampler.captured_keys <= 3 * len({1, 2, 4, 5})
    sampler.release()
    assert sampler.captured_keys == 0


def reads_the_host(proposal, masked_nb, k_n, choices):
    chosen = low_confidence_static(proposal, masked_nb, k_n, choices)
    assert int(chosen.sum()) >= 0
    return chosen


def test_a_step_that_cannot_be_captured_is_named_once_and_runs_eagerly(sdar, caplog):
    settings = {"strategy": Strategy(reads_the_host)}
    sampler = sampler_of(sdar, Emulator(), **settings)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for a, b in zip(sampler.generate(PROMPTS), sampler_of(sdar, **settings).generate(PROMPTS), strict=True):
                same(a, b)
    (said,) = caplog.messages
    assert "reads_the_host" in said and "cannot be captured" in said and sampler.captured_keys == 0


def test_only_exact_caches_are_captured():
    for name, cache in (("dream", "none"), ("dream", "prefix"), ("llada", "dual"), ("sdar", "none")):
        emulator = Emulator()
        sampler = sampler_of(tiny_model(name), emulator, cache=cache, max_new_tokens=8, block_size=4)
        sampler.generate(PROMPTS[:3])
        assert emulator.captures == 0, (name, cache)


def test_buckets_hold_the_slots_and_never_more_than_there_are():
    for most in (1, 5, 6, 100, 103, 1024, 3000):
        for slots in range(1, min(most, 1500) + 1):
            assert slots <= bucket(slots, most) <= most
    assert len({bucket(slots, 1024) for slots in range(1, 1025)}) <= 17
    assert [commit_spans(n) for n in (1, 2, 8, 64)] == [[1], [1, 2], [3, 5, 8], [24, 40, 64]]


@pytest.mark.parametrize(("steps_a_block", "share"), [(1, 1.0), (2, 0.625), (3, 0.375), (4, 0.375)])
def test_the_budget_is_the_least_that_serves_so_many_steps_a_block(steps_a_block, share):
    """64 slots that decide a block every so many steps and wait where their block finds no room."""
    n, budget = 64, CommitBudget()
    needs, waited = torch.zeros(n, dtype=torch.bool), torch.zeros(n, dtype=torch.int32)
    left, blocks = torch.arange(n) % steps_a_block + 1, torch.zeros(n, dtype=torch.long)
    longest = 0
    for _ in range(30):
        spans = budget.spans(n, n)
        for _ in range(8):
            granted = longest_waiting(needs, waited, spans)
            needs[granted] = False
            waited.add_(1).mul_(needs)
            longest = max(longest, int(waited.max()))
            left -= (~needs).long()
            done = (left <= 0) & ~needs
            blocks += done
            needs |= done
            left[done] = steps_a_block
        budget.look(dict(enumerate(blocks.tolist())), int(needs.sum()), 8)
    assert spans == math.ceil(share * n)
    assert longest <= 2 * math.ceil(n / math.ceil(0.375 * n))
    assert int(blocks.min()) >= 0.9 * int(blocks.max())  # nobody starves


def test_the_longest_waiting_go_first_and_equals_go_by_slot():
    needs = torch.tensor([True, False, True, True, False, True])
    waited = torch.tensor([0, 0, 2, 0, 0, 2], dtype=torch.int32)
    assert longest_waiting(needs, waited, 3).tolist() == [2, 5, 0]
    assert longest_waiting(needs, 0 * waited, 6).tolist() == [0, 2, 3, 5, 1, 4]


@pytest.mark.slow
def test_commits_that_wait_change_no_answer(sdar, monkeypatch):
    want = sampler_of(sdar, strategy="low_confidence_static", steps_per_block=1).generate(PROMPTS, n=2)
    for share in (0.1, 0.375, 0.625):
        monkeypatch.setattr(CommitBudget, "spans", lambda budget, n, live, share=share: math.ceil(share * n))
        sampler = sampler_of(sdar, eager, strategy="low_confidence_static", steps_per_block=1)
        for a, b in zip(sampler.generate(PROMPTS, n=2), want, strict=True):
            same(a, b)


def test_two_steps_a_block_compute_at_most_1_7_rows_a_position(sdar, monkeypatch):
    rows, hidden = [], DiffusionLM.hidden

    def counted(model, ids, positions, layout):
        rows.append(ids.numel())
        return hidden(model, ids, positions, layout)

    settings = {"strategy": "low_confidence_static", "steps_per_block": 2, "block_size": 4, "stop_ids": ()}
    sampler = sampler_of(sdar, eager, max_slots=16, max_new_tokens=64, **settings)
    prompts = random_prompts([8] * 16, seed=2)
    monkeypatch.setattr(DiffusionLM, "hidden", counted)
    sampler.generate(prompts)
    steady = rows[9:-8]  # the first look chooses the budget
    assert max(steady) / (16 * 4) <= 1.7 and len(steady) > 10


@pytest.fixture(scope="module")
def large():
    """SDAR-8B's shapes, two layers of it, on the meta device: whatever reads the device raises."""
    small = tiny_model("sdar")
    raw = small.spec.raw | {"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "head_dim": 128}
    raw |= {"num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 2}
    network = empty_network(small.spec.family, raw).to("meta", torch.bfloat16)
    return DiffusionLM(network, small.spec, {}, None)


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 64, 256])
@pytest.mark.parametrize("draw", [*DRAWS, "nucleus"])
def test_a_step_of_8b_reads_nothing_on_the_host(large, draw, slots, monkeypatch):
    monkeypatch.setattr("models.attention.obstacle", lambda device: None)
    kv = SlotKV(large.hf_config, slots, 2304, torch.bfloat16, large.device)
    for strategy, attention in [*((name, "sdpa") for name in STRATEGIES), ("low_confidence_dynamic", "flex")]:
        chosen = DRAWS.get(draw, {"temperature": 1.0, "top_p": 0.95}) | {"attention": attention}
        config = SamplingConfig(max_new_tokens=64, strategy=strategy, block_size=4, **chosen).for_model(large)
        state = StepState.empty(slots, 2304, large.mask_id, large.device)
        cache, denoiser = ExactBlockCache(large, config, kv), Denoiser(large, config)
        for commits in commit_spans(slots):
            with torch.inference_mode():
                denoiser.step(cache, state, Bounds(2304, commits, 4 * slots))
