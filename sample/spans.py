"""How a family's forward is cut into spans: runs of query positions that write keys and values and attend to a slot.

A span (slot, first position, length, end of the keys seen) has no mask inside: its queries see all keys before `end`. What differs
between exact block caches and full recompute is only which spans are run.

Shapes: n slots at work, b positions of a block, C commit spans, L tokens, T keys in view, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models import DiffusionLM
from models.attention import Masked, block_causal_mask, grouped_attention
from sample.config import SamplingConfig
from sample.slots import SlotKV, StepState


@dataclass(frozen=True)
class Prefill:
    """Whole prompt blocks of B prompts, right-padded to L: queries see their own row, which is also written to its slot."""

    kv: SlotKV
    slot_B: Tensor
    mask_LL: Tensor

    def attend(self, layer: int, query_BHLd: Tensor, key_BGLd: Tensor, value_BGLd: Tensor, scale: float) -> Tensor:
        L = key_BGLd.shape[2]
        self.kv.keys[layer][self.slot_B, :, :L] = key_BGLd
        self.kv.values[layer][self.slot_B, :, :L] = value_BGLd
        return grouped_attention(query_BHLd, key_BGLd, value_BGLd, self.mask_LL, scale)


@dataclass(frozen=True)
class BlockSpans:
    """One denoise span for each of the first n slots, then C commit spans; all are written before any attends.

    slot_S, position_Sb: of the S = n + C spans; end_S: first key position that a span does not see; view_tokens: keys read.
    """

    kv: SlotKV
    slot_S: Tensor
    position_Sb: Tensor
    end_S: Tensor
    denoise: int
    view_tokens: int

    def attend(self, layer: int, query_SHbd: Tensor, key_SGbd: Tensor, value_SGbd: Tensor, scale: float) -> Tensor:
        keys, values = self.kv.keys[layer], self.kv.values[layer]
        where = (self.slot_S[:, None], slice(None), self.position_Sb)
        keys[where] = key_SGbd.transpose(1, 2)
        values[where] = value_SGbd.transpose(1, 2)
        mask = (torch.arange(self.view_tokens, device=keys.device) < self.end_S[:, None])[:, None, None]
        n, view = self.denoise, slice(self.view_tokens)
        out = []
        if n:
            out.append(grouped_attention(query_SHbd[:n], keys[:n, :, view], values[:n, :, view], mask[:n], scale))
        if len(self.slot_S) > n:
            slot = self.slot_S[n:]
            out.append(grouped_attention(query_SHbd[n:], keys[:, :, view][slot], values[:, :, view][slot], mask[n:], scale))
        return torch.cat(out) if len(out) > 1 else out[0]


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

    def hidden(self, state: StepState, view_tokens: int, commits: int) -> tuple[Tensor, Tensor]:
        """Hidden states [n, b, D] for the block at hand, and which slots took part [n] (bool); `commits` is the room for commit
        spans, a slot without room waits for the next step."""
        ...


class ExactBlockCache:
    """Block families: keys and values of decided blocks never change, so they are computed once, when a block is committed.

    The commit of a block rides in the same forward as the first denoising step of the next block (both are written before either
    attends, and the mask makes each see what it would see alone), so that a block of K steps costs K forwards, not K + 1.
    """

    def __init__(self, model: DiffusionLM, config: SamplingConfig, kv: SlotKV):
        assert config.block_size is not None
        self.model, self.kv, self.block_size, self.fused = model, kv, config.block_size, config.fuse_commit

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
        layout = Prefill(self.kv, torch.tensor(slots, device=device), block_causal_mask(longest, self.block_size, device))
        self.model.hidden(ids, torch.arange(longest, device=device).expand(len(rows), longest), layout)

    def copy_prompt(self, source: Tensor, target: Tensor, length_tokens: int) -> None:
        if length := self.first_block(length_tokens):
            self.kv.copy(source, target, length)

    def hidden(self, state: StepState, view_tokens: int, commits: int) -> tuple[Tensor, Tensor]:
        n, b = len(state.start), self.block_size
        slot_n = torch.arange(n, device=state.start.device)
        offset_b = torch.arange(b, device=state.start.device)
        ready = ~state.needs_commit
        slots, starts = [slot_n], [state.start]
        if commits:
            chosen_C = state.needs_commit.to(torch.int8).argsort(descending=True, stable=True)[:commits]
            granted_C = state.needs_commit[chosen_C]
            ready = ready.scatter(0, chosen_C, True)
            slots.append(torch.where(granted_C, chosen_C, self.kv.slots))
            starts.append(torch.where(granted_C, state.start[chosen_C] - b, 0))
        slot_S, start_S = torch.cat(slots), torch.cat(starts)
        position_Sb = start_S[:, None] + offset_b
        ids_Sb = state.ids[slot_S.clamp_max(n - 1)[:, None], position_Sb]
        spans = [slice(0, n + commits)] if self.fused or not commits else [slice(n, n + commits), slice(0, n)]
        for part in spans:
            layout = BlockSpans(
                self.kv, slot_S[part], position_Sb[part], start_S[part] + b, max(0, n - (part.start or 0)), view_tokens
            )
            hidden = self.model.hidden(ids_Sb[part], position_Sb[part], layout)
        state.needs_commit &= ~ready
        return hidden[:n], ready & state.live


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

    def hidden(self, state: StepState, view_tokens: int, commits: int) -> tuple[Tensor, Tensor]:
        device, L = state.ids.device, view_tokens
        if self.model.attention == "block":
            mask = block_causal_mask(L, self.block_size, device)
        else:
            mask = (torch.arange(L, device=device) < state.end.clamp_min(1)[:, None])[:, None, None]
        positions = torch.arange(L, device=device).expand(len(state.ids), L)
        hidden_nLD = self.model.hidden(state.ids[:, :L], positions, Masked(mask))
        read = state.start[:, None] + torch.arange(self.block_size, device=device) - int(self.model.logit_shift)
        state.needs_commit[:] = False
        return hidden_nLD[torch.arange(len(read), device=device)[:, None], read.clamp_min(0)], state.live.clone()
