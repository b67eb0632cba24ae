"""What a compiled FlexAttention kernel computes, by torch's attention: from the very lists of blocks, and the rule on
single tokens inside those seen in part. Kernels are compared with masks in tests/models/test_models_flex.py."""

import torch
import torch.nn.functional as F


def use_dense_kernels(monkeypatch):
    """In place of compiled ones, which take seconds a shape. Returns shapes of the queries, call by call."""
    import models.flex
    import models.flex_packed

    shapes = []

    def slots(query, key, value, seen_nQ, blocks, options=None):
        shapes.append(tuple(query.shape))
        n, Q = seen_nQ.shape
        rule = torch.arange(key.shape[2]) < seen_nQ[..., None]
        partial = listed(blocks.partial[:, 0], blocks.partial_index[:, 0], Q, key.shape[2])
        whole = listed(blocks.whole[:, 0], blocks.whole_index[:, 0], Q, key.shape[2])
        return attend(query, key, value, (partial & rule | whole)[:, None])

    def packed(query, key, value, where, seen):
        shapes.append(tuple(query.shape))
        T = query.shape[2]
        row, block, copy = where
        before = (copy[None] == 0) & (block[None] < block[:, None])
        own = (copy[None] == copy[:, None]) & (block[None] == block[:, None])
        rule = (row[None] == row[:, None]) & (before | own)
        lists = [listed(count[0], index[0], T, T)[0] for count, index in zip(seen[::2], seen[1::2], strict=True)]
        partial, whole = lists[:2]
        assert torch.equal(lists[2], partial.T) and torch.equal(lists[3], whole.T)
        return attend(query, key, value, partial & rule | whole)

    monkeypatch.setattr(models.flex, "_fixed", slots)
    monkeypatch.setattr(models.flex, "_dynamic", slots)
    monkeypatch.setattr(models.flex_packed, "_compiled", lambda device_type: packed)
    monkeypatch.setattr("models.attention.obstacle", lambda device: None)
    return shapes


def listed(count_nq, index_nqk, queries, keys):
    """Bool [n, queries, keys]: the blocks that are listed."""
    order = torch.arange(index_nqk.shape[-1]) < count_nq[..., None]
    seen = torch.zeros(index_nqk.shape, dtype=torch.long).scatter_add_(-1, index_nqk.long(), order.long()) > 0
    return seen.repeat_interleave(128, 1).repeat_interleave(128, 2)[:, :queries, :keys]


def attend(query, key, value, mask):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).nan_to_num(0.0)
