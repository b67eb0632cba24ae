"""What the queries of one of the sampler's forwards see, and where their keys and values go.

Shapes: n slots at work, b positions of a block, C commit spans, S = n + C spans, Q queries of a slot, B sequences, L
tokens, T keys of a slot, H query heads, G key-value heads, d head size.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import AttentionKind, Layout, Masked
from sample.slots import SlotKV


@dataclass(frozen=True)
class Prefill:
    """Tokens whose keys and values are also written to their slots; they see each other as in `inner`. row: where
    (`SlotKV.rows`), token by token."""

    kv: SlotKV
    row: Tensor
    inner: Layout

    def attend(self, layer: int, query_BHLd: Tensor, key_BGLd: Tensor, value_BGLd: Tensor, scale: float) -> Tensor:
        self.kv.write(layer, self.row, key_BGLd, value_BGLd)
        return self.inner.attend(layer, query_BHLd, key_BGLd, value_BGLd, scale)


def whole_sequences(end_B: Tensor, length_tokens: int, kind: AttentionKind, dtype: torch.dtype) -> Layout:
    """Full attention over sequences [B, L], padded right: each sees its first end_B tokens (at least one)."""
    end_B = end_B.clamp_min(1)
    if kind == "sdpa":
        return Masked((torch.arange(length_tokens, device=end_B.device) < end_B[:, None])[:, None, None])
    from models.flex import FlexSequences
    from models.varlen import VarlenSequences, takes_key_lengths

    if takes_key_lengths(end_B.device, dtype):
        return VarlenSequences.of(end_B, length_tokens)
    return FlexSequences.of(end_B, length_tokens)


class SlotKeys(Protocol):
    """Keys that the queries of each slot see: the first ones."""

    view_tokens: int

    def attend(self, query_nHQd: Tensor, key_nGTd: Tensor, value_nGTd: Tensor, scale: float) -> Tensor:
        """Attention output [n, H, Q, d]."""
        ...


class BiasedKeys:
    """By SDPA under a bias over the first `view_tokens` keys. The heads of a group become query rows: no key is
    copied."""

    def __init__(self, seen_nQ: Tensor, kv: SlotKV, view_tokens: int):
        self.view_tokens = view_tokens
        if seen_nQ.shape[1] > 1:
            seen_nQ = seen_nQ.repeat(1, kv.heads_per_key)
        unseen_nQT = torch.arange(view_tokens, device=seen_nQ.device) >= seen_nQ[..., None]
        self.bias_n1QT = torch.zeros_like(unseen_nQT, dtype=kv.pool.dtype).masked_fill_(unseen_nQT, -torch.inf)[:, None]

    def attend(self, query_nHQd: Tensor, key_nGTd: Tensor, value_nGTd: Tensor, scale: float) -> Tensor:
        n, H, _, d = query_nHQd.shape
        folded = query_nHQd.reshape(n, key_nGTd.shape[1], -1, d)
        out = F.scaled_dot_product_attention(folded, key_nGTd, value_nGTd, attn_mask=self.bias_n1QT, scale=scale)
        return out.reshape(n, H, -1, d)


class FlexKeys:
    """By FlexAttention: of each slot only the blocks of keys are read that it sees. recurs: shapes will come again
    (`models.flex.slot_attention`)."""

    def __init__(self, seen_nQ: Tensor, queries: int, kv: SlotKV, recurs: bool):
        from models.flex import blocks_before

        self.view_tokens, self.recurs = kv.capacity_tokens, recurs
        self.seen_nQ = seen_nQ.int().expand(-1, queries).contiguous()
        self.blocks = blocks_before(self.seen_nQ, self.view_tokens)

    def attend(self, query_nHQd: Tensor, key_nGTd: Tensor, value_nGTd: Tensor, scale: float) -> Tensor:
        from models.flex import slot_attention

        return slot_attention(query_nHQd, key_nGTd, value_nGTd, self.seen_nQ, self.blocks, scale, self.recurs)


class BlockSpans:
    """A span of b positions for each of the first n slots, then a commit span of the b before it for each slot of row_C
    (distinct, may be none).

    All are written before any attends. In attention the two spans of a slot are one run of 2b queries, so that its keys
    are read once and never gathered; the second half of a slot without a commit span is idle. slot_Sb
    ([S, 1] or a slot a position): the slots that spans are written to; position_Sb: where. `keys`: what the queries of
    each slot see (`seen_by_spans`).
    """

    def __init__(self, kv: SlotKV, slot_Sb: Tensor, position_Sb: Tensor, row_C: Tensor, keys: SlotKeys):
        self.kv, self.row_C, self.keys = kv, row_C, keys
        self.n = len(position_Sb) - len(row_C)
        self.row = kv.rows(slot_Sb, position_Sb)

    def attend(self, layer: int, query_SHbd: Tensor, key_SGbd: Tensor, value_SGbd: Tensor, scale: float) -> Tensor:
        _, H, b, d = query_SHbd.shape
        n, row_C = self.n, self.row_C
        self.kv.write(layer, self.row, key_SGbd, value_SGbd)
        query_nHQd = query_SHbd
        if len(row_C):
            query_nHQd = query_SHbd.new_zeros(n, H, 2 * b, d)
            query_nHQd[:, :, :b] = query_SHbd[:n]
            query_nHQd[row_C, :, b:] = query_SHbd[n:]
        out = self.keys.attend(query_nHQd, *self.kv.view(layer, n, self.keys.view_tokens), scale)
        if len(row_C):
            out = torch.cat([out[:, :, :b], out[row_C, :, b:]])
        return out.transpose(1, 2)


def seen_by_spans(end_n: Tensor, b: int, commits: bool) -> Tensor:
    """[n, Q] or [n, 1]: a slot's own span sees the keys before its end, its commit span those before end - b."""
    end_n1 = end_n[:, None]
    if not commits:
        return end_n1
    return torch.cat([end_n1, (end_n1 - b).clamp_min(1)], dim=1).repeat_interleave(b, dim=1)
