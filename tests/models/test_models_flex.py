"""FlexAttention, compiled for the CPU, against torch's attention under explicit masks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from models import flex
from models.attention import attention_kind
from models.compiled import obstacle, suits
from models.flex import FlexSequences, blocks_before, kernel_options, slot_attention
from models.flex_packed import FlexPacked, Tokens, blocks_seen, padded_tokens
from train.algorithm.packing import replay_mask

H, G, D = 4, 2, 16
CANNOT = obstacle(torch.device("cpu"))
compiled = pytest.mark.skipif(CANNOT is not None, reason=f"FlexAttention cannot be compiled here: {CANNOT}")


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sdpa(query, key, value, mask):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)


def close(got, want):
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def graphs():
    return counters["stats"]["unique_graphs"]


def slots_of(seen_nQ, keys, recurs):
    n, Q = seen_nQ.shape
    pool = drawn(2, n + 1, keys, G, D)[:, :n].transpose(2, 3)
    query = drawn(n, H, Q, D, seed=1)
    with torch.inference_mode():
        got = slot_attention(query, *pool, seen_nQ.int(), blocks_before(seen_nQ, keys), D**-0.5, recurs)
    want = sdpa(query, *pool, (torch.arange(keys) < seen_nQ[..., None])[:, None])
    return got, want


@compiled
@pytest.mark.long
def test_spans_of_any_lengths_see_what_sdpa_sees_through_one_kernel():
    """A span and the commit span before it, in slots of 1 to 384 keys; a slot that is not live has none and gives 0."""
    b, generator = 4, torch.Generator().manual_seed(0)
    before = None
    for _ in range(4):
        end = torch.randint(2 * b, 385, (5, 1), generator=generator)
        end[0], end[1] = 384, 128 + b
        seen = torch.cat([end, end - b], dim=1).repeat_interleave(b, dim=1)
        seen[4] = 0
        got, want = slots_of(seen, 384, recurs=True)
        close(got[:4], want[:4])
        assert not got[4].any()
        before = before or graphs()
    assert graphs() == before


@compiled
@pytest.mark.long
def test_windows_and_whole_sequences_of_any_lengths_see_what_sdpa_sees():
    n, Q, keys, before = 3, 150, 384, None
    for seed in range(3):
        end = torch.randint(1, keys + 1, (n, 1), generator=torch.Generator().manual_seed(seed))
        close(*slots_of(end.expand(n, Q).contiguous(), keys, recurs=False))
        query, key, value = drawn(n, H, Q, D), drawn(n, G, Q, D, seed=1), drawn(n, G, Q, D, seed=2)
        ends = end[:, 0].clamp_max(Q)
        with torch.inference_mode():
            got = FlexSequences.of(ends, Q).attend(0, query, key, value, D**-0.5).transpose(1, 2)
        close(got, sdpa(query, key, value, (torch.arange(Q) < ends[:, None])[:, None, None]))
        before = before or graphs()
    assert graphs() == before


def rows_of(draw_row, rows, shuffle=False):
    """Rows of a clean copy and noisy copies of blocks, one after another."""
    parts = [draw_row(i) for i in range(rows)]
    return Tokens(
        np.concatenate([np.full(len(block), i) for i, (block, _) in enumerate(parts)]),
        np.concatenate([block for block, _ in parts]),
        np.concatenate([copy for _, copy in parts]),
    )


def mask_of(tokens):
    row = torch.from_numpy(tokens.row)
    same = row[:, None] == row[None]
    return same & replay_mask(torch.from_numpy(tokens.block), torch.from_numpy(tokens.copy))


@st.composite
def a_row(draw):
    """Clean blocks, and noisy copies of some of them in any order."""
    sizes = draw(st.lists(st.sampled_from([1, 2, 4, 16, 60, 130]), min_size=1, max_size=6))
    clean = np.repeat(np.arange(len(sizes)), sizes)
    noisy = draw(st.lists(st.integers(0, len(sizes) - 1), max_size=6))
    block = np.concatenate([clean, *(np.full(sizes[i], i) for i in noisy)])
    copy = np.concatenate([0 * clean, *(np.full(sizes[i], number + 1) for number, i in enumerate(noisy))])
    return block, copy


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.lists(a_row(), min_size=1, max_size=3))
def test_blocks_and_rule_together_are_the_mask_of_replay(rows):
    tokens = rows_of(lambda i: rows[i], len(rows))
    count = len(tokens.row)
    tokens = tokens.padded(-(-count // 128) * 128)
    mask, (partial, whole) = mask_of(tokens), blocks_seen(tokens)
    tiles = mask.unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).transpose(1, 2)
    assert not (partial & whole).any()
    assert tiles[torch.from_numpy(whole)].all(), "a block that counts as whole is not"
    assert not tiles[torch.from_numpy(~(partial | whole))].any(), "a block that is seen is left out"
    assert torch.equal(mask[count:], torch.eye(len(mask), dtype=torch.bool)[count:]), "padding sees something else"


def test_few_blocks_count_as_seen_that_are_not():
    """1,000 tokens of blocks of 4, each with a clean and two noisy copies, and a row of full attention beside it."""
    block, full = np.arange(1000) // 4, np.zeros(1024, dtype=np.int64)
    noisy = np.tile(np.arange(250)[:, None], (1, 2)).repeat(4, axis=1).ravel()
    copy = np.concatenate([0 * block, np.arange(500).repeat(4) + 1])
    for row in ((np.concatenate([block, noisy]), copy), (full, full)):
        tokens = rows_of(lambda i, row=row: row, 1)
        tokens = tokens.padded(padded_tokens(len(tokens.row)))
        partial, whole = blocks_seen(tokens)
        tiles = mask_of(tokens).unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).transpose(1, 2).flatten(2)
        assert (partial | whole).sum() <= 1.05 * int(tiles.any(-1).sum())
        assert whole.sum() == int(tiles.all(-1).sum())


def test_padding_is_little_and_lengths_are_few():
    assert len({padded_tokens(tokens) for tokens in range(1, 16385)}) < 80
    for tokens in range(1, 16385):
        padded = padded_tokens(tokens)
        assert padded % 128 == 0 and tokens <= padded < tokens + max(128, tokens / 16 + 1)


@compiled
@pytest.mark.long
def test_packed_rows_of_any_length_see_what_sdpa_sees_through_one_kernel():
    found = []
    for count, seed in ((3, 0), (1, 1), (2, 2)):
        rng = np.random.default_rng(seed)

        def row(i, rng=rng):
            clean = np.arange(rng.integers(5, 200)) // 4
            noisy = rng.integers(0, clean[-1] + 1, 9).repeat(4)
            return np.concatenate([clean, noisy]), np.concatenate([0 * clean, np.arange(9).repeat(4) + 1])

        tokens = rows_of(row, count)
        tokens = tokens.padded(768)
        T = len(tokens.row)
        query, key, value = drawn(1, H, T, D), drawn(1, G, T, D, seed=1), drawn(1, G, T, D, seed=2)
        with torch.inference_mode():
            got = FlexPacked.of(tokens, query.device).attend(0, query, key, value, D**-0.5).transpose(1, 2)
        close(got, sdpa(query, key, value, mask_of(tokens)))
        found.append(graphs())
    assert found[-1] == found[0]


def on_gpu(heads, queries, size=128, dtype=torch.bfloat16):
    return SimpleNamespace(shape=(16, heads, queries, size), device=torch.device("cuda"), dtype=dtype)


def test_the_decoding_kernel_takes_at_most_64_rows_at_once(monkeypatch):
    """torch 2.11 has no kernel for 256 rows, 64 queries of 4 heads, which blocks of 32 make."""
    monkeypatch.setattr(flex, "_shared_bytes", lambda device: 227 * 1024)
    key = on_gpu(8, 2048)
    for queries, rows in ((8, None), (16, None), (17, 64), (32, 64), (64, 64), (96, 64)):
        assert kernel_options(on_gpu(32, queries), key).get("BLOCK_M") == rows


def test_another_kernel_is_told_nothing(monkeypatch):
    monkeypatch.setattr(flex, "_shared_bytes", lambda device: 227 * 1024)
    assert kernel_options(on_gpu(32, 128), on_gpu(8, 2048)) is None
    assert kernel_options(on_gpu(28, 8), on_gpu(4, 2048)) is None  # seven heads a group
    assert kernel_options(on_gpu(16, 8), on_gpu(8, 2048)) is None  # 16 rows: not measured
    assert kernel_options(drawn(2, H, 8, D), drawn(2, G, 128, D)) is None


def test_three_tiles_are_read_ahead_only_where_they_fit(monkeypatch):
    query, key = on_gpu(32, 8), on_gpu(8, 2048)
    for shared_kib, others in ((227, {"num_warps": 4, "num_stages": 3}), (99, None), (0, None)):
        flex._shared_bytes.cache_clear()
        card = SimpleNamespace(shared_memory_per_block_optin=shared_kib * 1024) if shared_kib else SimpleNamespace()
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, card=card: card)
        assert kernel_options(query, key) == others
        for large in (on_gpu(32, 32, size=256), on_gpu(32, 32, dtype=torch.float32)):
            assert kernel_options(large, key) == {"BLOCK_M": 64, "num_warps": 4}
    flex._shared_bytes.cache_clear()


def test_flex_that_cannot_be_compiled_is_refused_with_the_way_out(monkeypatch):
    cpu = torch.device("cpu")
    assert attention_kind("auto", cpu) == "sdpa"
    monkeypatch.setattr("models.compiled.shutil.which", lambda name: None)
    with pytest.raises(ValueError, match=r"attention=flex cannot run on cpu: there is no C compiler .*sdpa"):
        attention_kind("flex", cpu)
    monkeypatch.setattr("models.compiled.importlib.util.find_spec", lambda name: None)
    suits.cache_clear()
    assert attention_kind("auto", torch.device("cuda")) == "sdpa"
    suits.cache_clear()
