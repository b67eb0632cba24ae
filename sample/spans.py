"""How a family's forward is cut into spans: runs of query positions that write keys and values and attend to a slot.

A span (slot, first position, length, end of the keys seen) has no mask inside: its queries see all keys before `end`.
What differs between exact block caches and full recompute is only which spans are run.

Shapes: n slots at work, b positions of a block, C commit spans, S = n + C spans, Q queries of a slot, L tokens, T keys
in view, H query heads, G key-value heads, d head size, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models import DiffusionLM
from models.attention import Masked, block_causal_mask, grouped_attention
from sample.config import SamplingConfig
from sample.slots import SlotKV, StepState


class Bounds(NamedTuple):
    """What the host knows about the coming steps. Upper bounds, so that shapes are fixed and a step need not ask the
    device.

    view_tokens: key positions that any slot sees. commits: slots that may have a block to commit. masks: positions that
    may be undecided.
    """

    view_tokens: int
    commits: int
    masks: int


def first_true(flag_n: Tensor, count: int) -> Tensor:
    """Indices of the true entries, then of others, `count` in all: a fixed shape."""
    return flag_n.to(torch.uint8).argsort(descending=True, stable=True)[:count]


@dataclass(frozen=True)
class Prefill:
    """Whole prompt blocks of B prompts, right-padded to L: queries see their own row, which is also written to its
    slot."""

    kv: SlotKV
    row: Tensor
    mask_LL: Tensor

    def attend(self, layer: int, query_BHLd: Tensor, key_BGLd: Tensor, value_BGLd: Tensor, scale: float) -> Tensor:
        self.kv.write(layer, self.row, key_BGLd, value_BGLd)
        return grouped_attention(query_BHLd, key_BGLd, value_BGLd, self.mask_LL, scale)


class BlockSpans:
    """A span of b positions for each of the first n slots, then a commit span for each slot of row_C (distinct, may be
    none).

    All are written before any attends. In attention the two spans of a slot are one run of 2b queries, so that its keys
    are read once and never gathered; the second half of a slot without a commit span is idle. slot_S: the slots that
    spans are written to; position_Sb: where; start_n: a slot's own span sees keys before start + b, its commit span
    those before start. view_tokens: keys read.
    """

    def __init__(
        self, kv: SlotKV, slot_S: Tensor, position_Sb: Tensor, start_n: Tensor, row_C: Tensor, view_tokens: int
    ):
        self.kv, self.n, self.row_C, self.view_tokens = kv, len(start_n), row_C, view_tokens
        self.row = kv.rows(slot_S, position_Sb)
        b = position_Sb.shape[1]
        end_nQ = start_n[:, None] + b
        if len(row_C):
            ends = torch.cat([end_nQ, start_n[:, None].clamp_min(1)], dim=1)
            end_nQ = ends.repeat_interleave(b, dim=1).repeat(1, kv.heads_per_key)
        unseen_nQT = torch.arange(view_tokens, device=start_n.device) >= end_nQ[..., None]
        bias_nQT = torch.zeros_like(unseen_nQT, dtype=kv.keys[0].dtype).masked_fill_(unseen_nQT, -torch.inf)
        self.bias_n1QT = bias_nQT[:, None]

    def attend(self, layer: int, query_SHbd: Tensor, key_SGbd: Tensor, value_SGbd: Tensor, scale: float) -> Tensor:
        _, H, b, d = query_SHbd.shape
        n, row_C, G = self.n, self.row_C, key_SGbd.shape[1]
        self.kv.write(layer, self.row, key_SGbd, value_SGbd)
        query_nHQd = query_SHbd
        if len(row_C):
            query_nHQd = query_SHbd.new_zeros(n, H, 2 * b, d)
            query_nHQd[:, :, :b] = query_SHbd[:n]
            query_nHQd[row_C, :, b:] = query_SHbd[n:]
        keys, values = self.kv.view(layer, n, self.view_tokens)
        folded = query_nHQd.reshape(n, G, -1, d)
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=self.bias_n1QT, scale=scale)
        out = out.reshape(n, H, -1, d)
        if len(row_C):
            out = torch.cat([out[:, :, :b], out[row_C, :, b:]])
        return out.transpose(1, 2)


class CachePolicy(Protocol):
    """A family's way to get the hidden states of the block at hand of every slot."""

    def first_block(self, prompt_tokens: int) -> int:
        """Position where the first decoded block starts."""
        ...

    def end(self, prompt_tokens: int, max_new_tokens: int) -> int:
        """Position after the last block that may be decoded."""
        ...

    def prefill(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> None:
        """Computes what the prompts' slots must hold before the first step."""
        ...

    def copy_prompt(self, source: Tensor, target: Tensor, length_tokens: int) -> None:
        """Hands a prefilled prompt to the slots of its siblings."""
        ...

    def hidden(self, state: StepState, bounds: Bounds) -> tuple[Tensor, Tensor]:
        """Hidden states [n, b, D] for the block at hand, and which slots took part [n] (bool)."""
        ...


class ExactBlockCache:
    """Block families: keys and values of decided blocks never change, so they are computed once, when a block is
    committed.

    The commit of a block rides in the same forward as the first denoising step of the next block (both are written
    before either attends, and each sees what it would see alone), so that a block of K steps costs K forwards, not K +
    1.
    """

    def __init__(self, model: DiffusionLM, config: SamplingConfig, kv: SlotKV):
        assert config.block_size is not None
        self.model, self.kv, self.block_size, self.fused = model, kv, config.block_size, config.fuse_commit
        self.offset_b = torch.arange(config.block_size, device=model.device)

    def first_block(self, prompt_tokens: int) -> int:
        return prompt_tokens // self.block_size * self.block_size

    def end(self, prompt_tokens: int, max_new_tokens: int) -> int:
        return -(-(prompt_tokens + max_new_tokens) // self.block_size) * self.block_size

    def prefill(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> None:
        longest = max(self.first_block(len(p)) for p in prompts)
        if longest == 0:
            return
        device = self.kv.keys[0].device
        rows = [list(p[: self.first_block(len(p))]) for p in prompts]
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        positions = torch.arange(longest, device=device).expand(len(rows), longest)
        row = self.kv.rows(torch.tensor(slots, device=device), positions)
        self.model.hidden(ids, positions, Prefill(self.kv, row, block_causal_mask(longest, self.block_size, device)))

    def copy_prompt(self, source: Tensor, target: Tensor, length_tokens: int) -> None:
        if length := self.first_block(length_tokens):
            self.kv.copy(source, target, length)

    def hidden(self, state: StepState, bounds: Bounds) -> tuple[Tensor, Tensor]:
        n = len(state.start)
        slot_n = torch.arange(n, device=state.start.device)
        commits, needs = bounds.commits, state.needs_commit
        if commits and not self.fused:
            start_n = torch.where(needs, state.start - self.block_size, 0)
            writes_n = torch.where(needs, slot_n, self.kv.slots)
            self._forward(state, slot_n, writes_n, start_n, bounds.view_tokens)
            needs.zero_()
            commits = 0
        if not commits:
            return self._forward(state, slot_n, slot_n, state.start, bounds.view_tokens), state.live.clone()
        row_C = first_true(needs, commits)
        granted_C = needs[row_C]
        slot_S = torch.cat([slot_n, row_C])
        writes_S = torch.cat([slot_n, torch.where(granted_C, row_C, self.kv.slots)])
        start_S = torch.cat([state.start, torch.where(granted_C, state.start[row_C] - self.block_size, 0)])
        hidden_SbD = self._forward(state, slot_S, writes_S, start_S, bounds.view_tokens)
        needs.index_fill_(0, row_C, False)
        return hidden_SbD[:n], state.live & ~needs

    def _forward(self, state: StepState, slot_S: Tensor, writes_S: Tensor, start_S: Tensor, view_tokens: int) -> Tensor:
        """Hidden states [S, b, D] of the spans at start_S: those of the first n slots, then commits of slot_S[n:]."""
        position_Sb = start_S[:, None] + self.offset_b
        ids_Sb = state.ids[slot_S[:, None], position_Sb]
        row_C = slot_S[len(state.start) :]
        layout = BlockSpans(self.kv, writes_S, position_Sb, start_S[: len(state.start)], row_C, view_tokens)
        return self.model.hidden(ids_Sb, position_Sb, layout)


class FullRecompute:
    """No cache: every step runs the whole sequence under the family's own mask. Exact for every family, and slow."""

    def __init__(self, model: DiffusionLM, config: SamplingConfig):
        assert config.block_size is not None
        self.model, self.block_size = model, config.block_size

    def first_block(self, prompt_tokens: int) -> int:
        return prompt_tokens // self.block_size * self.block_size if self.model.attention == "block" else prompt_tokens

    def end(self, prompt_tokens: int, max_new_tokens: int) -> int:
        first = self.first_block(prompt_tokens)
        return first + -(-(prompt_tokens + max_new_tokens - first) // self.block_size) * self.block_size

    def prefill(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> None:
        return None

    def copy_prompt(self, source: Tensor, target: Tensor, length_tokens: int) -> None:
        return None

    def hidden(self, state: StepState, bounds: Bounds) -> tuple[Tensor, Tensor]:
        device, L = state.ids.device, bounds.view_tokens
        if self.model.attention == "block":
            mask = block_causal_mask(L, self.block_size, device)
        else:
            mask = (torch.arange(L, device=device) < state.end.clamp_min(1)[:, None])[:, None, None]
        positions = torch.arange(L, device=device).expand(len(state.ids), L)
        hidden_nLD = self.model.hidden(state.ids[:, :L], positions, Masked(mask))
        read = state.start[:, None] + torch.arange(self.block_size, device=device) - int(self.model.logit_shift)
        state.needs_commit.zero_()
        return hidden_nLD[torch.arange(len(read), device=device)[:, None], read.clamp_min(0)], state.live.clone()
