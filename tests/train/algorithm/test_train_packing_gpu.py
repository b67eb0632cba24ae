"""Micro-batches as a GPU gets them, on a CPU: FlexAttention over padded rows, by kernels that read the same lists of
blocks, and flash attention over rows that see all of themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense_flex import use_dense_kernels
from helpers import tiny_model
from trainees import random_rollout, replay_blocks

from configs.schema import TrainingConfig
from models.experts import ExpertLoad, replaying
from models.flex_packed import FlexPacked
from models.varlen import VarlenRows, VarlenSequences
from train.algorithm.packing import pack
from train.algorithm.replay import Replayer, replay

MASK, CPU = 1, torch.device("cpu")


def block_rows():
    generator = np.random.default_rng(3)
    sizes = ((5, 3), (9, 30), (2, 1), (30, 12))
    rollouts = [random_rollout(generator, prompt_tokens=P, block_size=4, blocks=blocks) for P, blocks in sizes]
    return [replay_blocks(rollout, block_size=4, mask_id=MASK) for rollout in rollouts]


def full_rows(model):
    generator = np.random.default_rng(4)
    replayer = Replayer("full", model.logit_shift, model.mask_id, 4)
    rollouts = [random_rollout(generator, prompt_tokens=P, block_size=4, blocks=3) for P in (5, 9, 140)]
    return [row for rollout in rollouts for row in replay(rollout, replayer, TrainingConfig())]


def scores_and_gradients(model, batch):
    model.zero_grad()
    logp = model(batch.ids, batch.positions, batch.layout, batch.index, batch.targets)
    (logp * torch.linspace(-1, 1, len(logp))).sum().backward()
    return logp.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", ["sdar", "dream", "llada"])
def test_scores_and_gradients_are_those_of_spans(monkeypatch, family):
    model = tiny_model(family)
    rows = block_rows() if family == "sdar" else full_rows(model)
    want = scores_and_gradients(model, pack(rows, range(len(rows)), CPU))
    shapes = use_dense_kernels(monkeypatch)
    monkeypatch.setattr("train.algorithm.packing.attention_kind", lambda requested, device: "flex")
    batch = pack(rows, range(len(rows)), CPU)
    got = scores_and_gradients(model, batch)
    assert shapes and batch.ids.shape[1] % 128 == 0
    torch.testing.assert_close(got[0], want[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[1], want[1], atol=1e-4, rtol=1e-4)  # sums over rows, in another order


@pytest.mark.parametrize("replays", [False, True])
def test_padding_counts_for_no_expert(monkeypatch, replays):
    model, rows = tiny_model("sdar_moe"), block_rows()
    if replays:
        generator = np.random.default_rng(5)
        rows = [replace(row, experts=generator.integers(0, 4, (row.num_tokens, 2, 2), dtype=np.int16)) for row in rows]
    counts = []
    use_dense_kernels(monkeypatch)
    for kind in ("sdpa", "flex"):
        monkeypatch.setattr("train.algorithm.packing.attention_kind", lambda requested, device, kind=kind: kind)
        batch, load = pack(rows, range(len(rows)), CPU), ExpertLoad(model)
        with replaying(model, batch.experts), load.counting(batch.num_tokens), torch.no_grad():
            model(batch.ids, batch.positions, batch.layout, batch.index, batch.targets)
        counts.append(load.take())
    assert batch.ids.numel() > batch.num_tokens == sum(row.num_tokens for row in rows)
    assert all(torch.equal(counts[0][name], counts[1][name]) for name in counts[0])
    assert all(count.sum() == 2 * batch.num_tokens for count in counts[1].values())


def test_samples_with_experts_and_without_are_no_micro_batch():
    first, *others = block_rows()
    rows = [replace(first, experts=np.zeros((first.num_tokens, 2, 2), np.int16)), *others]
    with pytest.raises(AssertionError, match="in all samples of a micro-batch or in none"):
        pack(rows, range(len(rows)), CPU)


def test_a_long_micro_batch_has_no_mask_that_grows_with_its_square(monkeypatch):
    monkeypatch.setattr("train.algorithm.packing.attention_kind", lambda requested, device: "flex")
    rollout = random_rollout(np.random.default_rng(0), prompt_tokens=64, block_size=4, blocks=1008, vocab_size=64)
    layout = pack([replay_blocks(rollout, block_size=4, mask_id=MASK)], [0], CPU).layout
    assert isinstance(layout, FlexPacked)
    assert sum(x.numel() for x in (*layout.where, *layout.seen)) < 10 * len(layout.where[0])


def as_flash_attention(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, enable_gqa=False, seqused_k=None):
    """torch's `varlen_attn`, row by row: queries [T, H, d]."""
    out = torch.zeros_like(query)
    for i, (start, end) in enumerate(zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], strict=False)):
        assert 0 < end - start <= max_q == max_k
        last = end if seqused_k is None else start + int(seqused_k[i])
        parts = (x.transpose(0, 1)[None] for x in (query[start:end], key[start:last], value[start:last]))
        out[start:end] = F.scaled_dot_product_attention(*parts, scale=scale, enable_gqa=enable_gqa)[0].transpose(0, 1)
    return out


@pytest.fixture
def flash(monkeypatch):
    """As if this device had it."""
    from torch.nn.attention import varlen

    monkeypatch.setattr(varlen, "varlen_attn", as_flash_attention)
    monkeypatch.setattr("models.varlen.takes_lengths", lambda device, dtype: True)


@pytest.mark.parametrize("family", ["dream", "llada"])
def test_rows_without_a_mask_go_through_flash_attention(monkeypatch, flash, family):
    model = tiny_model(family)
    rows = full_rows(model)
    want = scores_and_gradients(model, pack(rows, range(len(rows)), CPU))
    monkeypatch.setattr("train.algorithm.packing.attention_kind", lambda requested, device: "flex")
    batch = pack(rows, range(len(rows)), CPU)
    assert isinstance(batch.layout, VarlenRows)
    for a, b in zip(scores_and_gradients(model, batch), want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_sequences_of_the_sampler_go_through_flash_attention(flash):
    query, key, value = (
        torch.randn(3, heads, 9, 8, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 2)
    )
    end = torch.tensor([9, 1, 6])
    got = VarlenSequences.of(end, 9).attend(0, query, key, value, 8**-0.5)
    seen = (torch.arange(9) < end[:, None])[:, None, None]
    want = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_flash_attention_takes_what_torch_has():
    """The arguments that are passed to it are its own; torch 2.11 has none for grouped heads, which go elsewhere."""
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    named = inspect.signature(as_flash_attention).parameters
    own = inspect.signature(varlen_attn).parameters
    assert list(own)[:7] == list(named)[:7] and "scale" in own
    assert "enable_gqa" in own or "seqused_k" not in own
