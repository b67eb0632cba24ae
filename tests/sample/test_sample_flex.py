"""The sampler with FlexAttention: the answers of torch's attention, under shapes that do not follow data."""

import pytest
import torch
from capture_emulator import Emulator
from dense_flex import use_dense_kernels
from helpers import random_prompts, thinned, tiny_model
from oracle import same

from models.compiled import obstacle
from sample import Sampler, SamplingConfig
from sample.graphs import bucket

PROMPTS = random_prompts([9, 1, 6, 23, 12, 130, 3], seed=3)
STOPS = tuple(range(2, 64, 9))
CANNOT = obstacle(torch.device("cpu"))


def answers(model, attention, capture=None, n=2, **settings):
    chosen = {"max_new_tokens": 18, "threshold": 0.4, "stop_ids": STOPS, "max_slots": 5, "seed": 7, "block_size": 4}
    sampler = Sampler(model, SamplingConfig(**chosen | settings, attention=attention))
    sampler.capture = capture
    if capture is not None:
        sampler.steps_between_polls = 8
    return sampler.generate(PROMPTS, n=n), sampler


def all_same(got, want):
    for a, b in zip(got, want, strict=True):
        same(a, b)


EXACT = [{}, {"temperature": 1.0, "block_size": 6}, {"fuse_commit": False, "strategy": "low_confidence_static"}]
FULL = [
    ("dream", {"cache": "none"}),
    ("dream", {"cache": "prefix", "further_horizon": 5}),
    ("llada", {"cache": "dual"}),
    ("llada", {"cache": "prefix", "temperature": 1.0}),
]


@pytest.mark.parametrize("settings", thinned(EXACT, 3), ids=str)
def test_an_exact_cache_gives_the_same_answers_through_shapes_of_buckets(sdar, monkeypatch, settings):
    shapes = use_dense_kernels(monkeypatch)
    got, _ = answers(sdar, "flex", **settings)
    all_same(got, answers(sdar, "sdpa", **settings)[0])
    slots = {shape[0] for shape in shapes if shape[0] > 1 or shape[2] < 128}
    assert slots <= {bucket(n, 5) for n in range(1, 6)}
    assert {shape[2] for shape in shapes if shape[0] == 1 and shape[2] >= 128} <= {128, 256}


@pytest.mark.parametrize("case", thinned(FULL, 4), ids=str)
def test_full_attention_gives_the_same_answers(monkeypatch, case):
    family, settings = case
    model = tiny_model(family)
    assert use_dense_kernels(monkeypatch) == []
    all_same(answers(model, "flex", n=1, **settings)[0], answers(model, "sdpa", n=1, **settings)[0])


@pytest.mark.slow
def test_captured_steps_hold_it(sdar, monkeypatch):
    """Its kernels are single operations of a captured step, replayed with the lengths of the moment."""
    use_dense_kernels(monkeypatch)
    got, sampler = answers(sdar, "flex", capture=Emulator())
    assert sampler.captured_keys > 0
    all_same(got, answers(sdar, "sdpa")[0])


def test_slots_read_their_own_keys_and_dead_ones_none(sdar, monkeypatch):
    from models.flex import Blocks, blocks_before

    read = []

    def counted(seen_nQ: torch.Tensor, keys: int) -> Blocks:
        blocks = blocks_before(seen_nQ, keys)
        read.append((128 * (blocks.partial + blocks.whole).amax(2)[:, 0], seen_nQ.amax(1)))
        return blocks

    use_dense_kernels(monkeypatch)
    monkeypatch.setattr("models.flex.blocks_before", counted)
    answers(sdar, "flex", capture=lambda step: step, n=1)
    assert any((seen == 0).any() for _, seen in read)
    for keys, seen in read:
        assert torch.equal(keys, (seen + 127) // 128 * 128)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.skipif(CANNOT is not None, reason=f"FlexAttention cannot be compiled here: {CANNOT}")
def test_compiled_kernels_give_the_same_answers(sdar):
    """Captured too: 2 slots, so that few shapes are compiled."""
    want, _ = answers(sdar, "sdpa", max_slots=2)
    all_same(answers(sdar, "flex", max_slots=2)[0], want)
    all_same(answers(sdar, "flex", capture=Emulator(), max_slots=2)[0], want)
