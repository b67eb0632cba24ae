"""How a family's forward is cut into spans: runs of query positions that write keys and values and attend to a slot.

A span (slot, first position, length, end of the keys seen) has no mask inside: its queries see all keys before `end`.
What differs between exact block caches, frozen contexts and full recompute is only which spans are run.

Shapes: n slots at work, b positions of a block, C commit spans, S = n + C spans, F spans of a whole sequence, Q queries
of a slot, L tokens, T keys in view, H query heads, G key-value heads, d head size, D hidden size.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models import DiffusionLM
from models.attention import AttentionKind, Layout, Masked, block_causal_mask
from sample.config import SamplingConfig
from sample.draw import Mix
from sample.layouts import BiasedKeys, BlockSpans, FlexKeys, Prefill, SlotKeys, seen_by_spans, whole_sequences
from sample.slots import SlotKV, StepState

PREFILL_MAX_TOKENS = 16384
"""Of the prompts that are run together, padding among them."""


class Bounds(NamedTuple):
    """What the host knows about the coming steps. Upper bounds, so that shapes are fixed and a step need not ask the
    device.

    view_tokens: key positions that any slot sees. commits: slots that may have a block to commit, or with a frozen
    context a whole sequence to run. masks: positions that may be decided. window_tokens: positions that a slot with a
    frozen context runs, 0 where every slot runs its whole sequence. mix: of sequences that draw their tokens each in
    its own way, None where all do as the choices say.
    """

    view_tokens: int
    commits: int
    masks: int
    window_tokens: int = 0
    mix: Mix | None = None


class Demand(NamedTuple):
    """`Bounds` of the next step as 0-dimensional tensors on the device."""

    view_tokens: Tensor
    commits: Tensor
    masks: Tensor
    window_tokens: Tensor


def longest_waiting(flag_n: Tensor, waited_n: Tensor, count: int) -> Tensor:
    """Indices of the true entries, those that have waited longest first, then of others, `count` in all. waited_n: 0
    where the flag is false."""
    return (waited_n + flag_n).argsort(descending=True, stable=True)[:count]


def first_true(flag_n: Tensor, count: int) -> Tensor:
    """Indices of the true entries, then of others, `count` in all: a fixed shape."""
    return flag_n.to(torch.uint8).argsort(descending=True, stable=True)[:count]


class Forward(NamedTuple):
    """Sizes of a forward pass: query positions, and the keys that its mask spans for each (0: a small mask)."""

    tokens: int
    seen_tokens: int = 0


class CachePolicy(Protocol):
    """A family's way to get the hidden states of the block at hand of every slot.

    keeps_keys: keys and values of slots are kept (`SlotKV`). view_multiple: the bounds' view is rounded up to a
    multiple of so many tokens, so that shapes recur. polls_every_step: the host looks at every step which slots have
    ended. features: rows that stand for the negative ids of the slots at work, None where there are none.
    fixed_shapes: a step may compute all slots under the largest bounds at little more cost, so that it can be
    captured (`sample.graphs`). kind: the attention that it runs.
    """

    kind: AttentionKind
    fixed_shapes: bool
    keeps_keys: bool
    view_multiple: int
    polls_every_step: bool
    features: Tensor | None

    @staticmethod
    def forwards(slots: int, block_size: int, prompt_tokens: int, capacity_tokens: int) -> "list[Forward]":
        """The largest forward passes over so many slots, of prompts of so many tokens."""
        ...

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

    def demand(self, state: StepState, steps: int) -> Demand:
        """What the next step needs; view_tokens: what any of the next `steps` does."""
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

    fixed_shapes = True
    keeps_keys = True
    view_multiple = 32
    polls_every_step = False
    features: Tensor | None = None

    @staticmethod
    def forwards(slots: int, block_size: int, prompt_tokens: int, capacity_tokens: int) -> list[Forward]:
        """A prefill, and a step in which every slot has a block to commit."""
        prefilled = max(prompt_tokens, min(slots * prompt_tokens, PREFILL_MAX_TOKENS))
        return [Forward(prefilled), Forward(2 * slots * block_size, seen_tokens=capacity_tokens)]

    def __init__(self, model: DiffusionLM, config: SamplingConfig, kv: SlotKV):
        assert config.block_size is not None
        self.model, self.kv, self.block_size, self.fused = model, kv, config.block_size, config.fuse_commit
        self.kind = config.kind_on(model)
        self.offset_b = torch.arange(config.block_size, device=model.device)

    def first_block(self, prompt_tokens: int) -> int:
        return prompt_tokens // self.block_size * self.block_size

    def end(self, prompt_tokens: int, max_new_tokens: int) -> int:
        return -(-(prompt_tokens + max_new_tokens) // self.block_size) * self.block_size

    def prefill(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> None:
        rows = [list(p[: self.first_block(len(p))]) for p in prompts]
        longest = max(map(len, rows))
        if longest == 0:
            return
        if self.kind == "flex":
            self._prefill_packed(rows, slots)
            return
        device = self.kv.pool.device
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        positions = torch.arange(longest, device=device).expand(len(rows), longest)
        row = self.kv.rows(torch.tensor(slots, device=device)[:, None], positions)
        mask = block_causal_mask(longest, self.block_size, device)
        self.model.hidden(ids, positions, Prefill(self.kv, row, Masked(mask)))

    def _prefill_packed(self, rows: Sequence[Sequence[int]], slots: Sequence[int]) -> None:
        """The rows one after another, without padding but at the end; what pads is written to scratch."""
        from models.flex_packed import FlexPacked, Tokens, padded_tokens

        lengths = [len(row) for row in rows]
        position, slot = np.concatenate([np.arange(length) for length in lengths]), np.repeat(slots, lengths)
        tokens = Tokens(np.repeat(np.arange(len(rows)), lengths), position // self.block_size, 0 * position)
        padding = padded_tokens(len(position)) - len(position)
        numbers = np.stack([np.concatenate(rows), position, slot]).astype(np.int64)
        ids, positions, slot_T = F.pad(torch.from_numpy(numbers).to(self.kv.pool.device), (0, padding))
        slot_T[len(position) :] = self.kv.slots
        layout = FlexPacked.of(tokens.padded(len(ids)), ids.device)
        self.model.hidden(ids[None], positions[None], Prefill(self.kv, self.kv.rows(slot_T, positions), layout))

    def copy_prompt(self, source: Tensor, target: Tensor, length_tokens: int) -> None:
        if length := self.first_block(length_tokens):
            self.kv.copy(source, target, length)

    def demand(self, state: StepState, steps: int) -> Demand:
        view = ((state.start + self.block_size * steps) * state.live).amax()
        masks = (state.masks * state.live).sum()
        return Demand(view, state.needs_commit.sum(), masks, state.start.new_zeros(()))

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
        row_C = longest_waiting(needs, state.waited, commits)
        granted_C = needs[row_C]
        slot_S = torch.cat([slot_n, row_C])
        writes_S = torch.cat([slot_n, torch.where(granted_C, row_C, self.kv.slots)])
        start_S = torch.cat([state.start, torch.where(granted_C, state.start[row_C] - self.block_size, 0)])
        hidden_SbD = self._forward(state, slot_S, writes_S, start_S, bounds.view_tokens)
        needs.index_fill_(0, row_C, False)
        state.waited.add_(1).mul_(needs)
        return hidden_SbD[:n], state.live & ~needs

    def _forward(self, state: StepState, slot_S: Tensor, writes_S: Tensor, start_S: Tensor, view_tokens: int) -> Tensor:
        """Hidden states [S, b, D] of the spans at start_S: those of the first n slots, then commits of slot_S[n:]."""
        position_Sb = start_S[:, None] + self.offset_b
        ids_Sb = state.ids[slot_S[:, None], position_Sb]
        row_C = slot_S[len(state.start) :]
        end_n = start_S[: len(state.start)] + self.block_size
        keys = self._keys(state, seen_by_spans(end_n, self.block_size, len(row_C) > 0), view_tokens)
        layout = BlockSpans(self.kv, writes_S[:, None], position_Sb, row_C, keys)
        return self.model.hidden(ids_Sb, position_Sb, layout)

    def _keys(self, state: StepState, seen_nQ: Tensor, view_tokens: int) -> SlotKeys:
        """Slots that are not live read no key where that is possible."""
        if self.kind == "sdpa":
            return BiasedKeys(seen_nQ, self.kv, view_tokens)
        return FlexKeys(seen_nQ * state.live[:, None], max(seen_nQ.shape[1], self.block_size), self.kv, recurs=True)


class FullRecompute:
    """No cache: every step runs the whole sequence under the family's own mask. Exact for every family, and slow."""

    fixed_shapes = False
    keeps_keys = False
    view_multiple = 1
    polls_every_step = False
    features: Tensor | None = None

    @staticmethod
    def forwards(slots: int, block_size: int, prompt_tokens: int, capacity_tokens: int) -> list[Forward]:
        return [Forward(slots * capacity_tokens)]

    def __init__(self, model: DiffusionLM, config: SamplingConfig):
        assert config.block_size is not None
        self.model, self.block_size, self.kind = model, config.block_size, config.kind_on(model)
        self.offset_b = torch.arange(config.block_size, device=model.device)

    def first_block(self, prompt_tokens: int) -> int:
        return prompt_tokens // self.block_size * self.block_size if self.model.attention == "block" else prompt_tokens

    def end(self, prompt_tokens: int, max_new_tokens: int) -> int:
        end = prompt_tokens + max_new_tokens
        return -(-end // self.block_size) * self.block_size if self.model.attention == "block" else end

    def prefill(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> None:
        return None

    def copy_prompt(self, source: Tensor, target: Tensor, length_tokens: int) -> None:
        return None

    def demand(self, state: StepState, steps: int) -> Demand:
        none = state.start.new_zeros(())
        return Demand((state.length * state.live).amax(), none, (state.masks * state.live).sum(), none)

    def hidden(self, state: StepState, bounds: Bounds) -> tuple[Tensor, Tensor]:
        device, L = state.ids.device, bounds.view_tokens
        if self.model.attention == "block":
            layout: Layout = Masked(block_causal_mask(L, self.block_size, device))
        else:
            layout = whole_sequences(state.length, L, self.kind, self.model.dtype)
        positions = torch.arange(L, device=device).expand(len(state.ids), L)
        hidden_nLD = self.model.hidden(self.ids(state, L), positions, layout, self.features)
        state.needs_commit.zero_()
        return self.predicting(hidden_nLD, state.start), state.live.clone()

    def ids(self, state: StepState, length_tokens: int) -> Tensor:
        """The slots' first ids [n, length], negative ones as -1 - row of `features`; what slots that have ended hold
        stands for nothing."""
        ids_nL = state.ids[:, :length_tokens]
        if self.model.image_id is None:
            return ids_nL
        if self.features is None:
            return ids_nL.clamp_min(0)
        return torch.where(ids_nL < 0, ids_nL - state.first_row[:, None], ids_nL).clamp_min(-len(self.features))

    def predicting(self, hidden_nLD: Tensor, block_n: Tensor) -> Tensor:
        """Hidden states [n, b, D] that predict the b tokens from index block_n on. An index without one gets
        another's."""
        n, L, _ = hidden_nLD.shape
        index = block_n[:, None] + self.offset_b - int(self.model.logit_shift)
        return hidden_nLD[torch.arange(n, device=hidden_nLD.device)[:, None], index.clamp(0, L - 1)]


class FrozenContext(FullRecompute):
    """Approximate caches of full attention (Fast-dLLM, arXiv:2505.22618): the first call of a block runs the whole
    sequence and keeps its keys and values, later calls run a window from the block's start against them.

    prefix: the window reaches to the block's end + further_horizon, or to the end, and sees nothing right of itself.
    dual: the window is the block, and what is right of it is seen as it was in the first call.
    polls_every_step keeps both kinds of forward small.
    """

    keeps_keys = True
    polls_every_step = True

    def __init__(self, model: DiffusionLM, config: SamplingConfig, kv: SlotKV):
        super().__init__(model, config)
        self.kv, self.dual = kv, config.cache == "dual"
        self.reach = kv.capacity_tokens
        if self.dual or config.further_horizon is not None:
            self.reach = min(self.reach, self.block_size + (config.further_horizon or 0))

    def demand(self, state: StepState, steps: int) -> Demand:
        fresh = state.live & (state.block_step == 0)
        window = (self._window_end(state) - state.start) * (state.live & ~fresh)
        return super().demand(state, steps)._replace(commits=fresh.sum(), window_tokens=window.amax())

    def hidden(self, state: StepState, bounds: Bounds) -> tuple[Tensor, Tensor]:
        fresh = state.live & (state.block_step == 0)
        hidden_nbD = None
        if bounds.window_tokens:
            hidden_nbD = self._window(state, fresh, min(bounds.window_tokens, self.reach), bounds.view_tokens)
        if bounds.commits:
            row_F = first_true(fresh, bounds.commits)
            whole_FbD = self._whole(state, row_F, fresh[row_F], bounds.view_tokens)
            if hidden_nbD is None:
                hidden_nbD = whole_FbD.new_zeros(len(fresh), *whole_FbD.shape[1:])
            whole_FbD = torch.where(fresh[row_F][:, None, None], whole_FbD, hidden_nbD[row_F])
            hidden_nbD = hidden_nbD.index_copy(0, row_F, whole_FbD)
        assert hidden_nbD is not None
        return hidden_nbD, state.live.clone()

    def _window_end(self, state: StepState) -> Tensor:
        return torch.minimum(state.start + self.reach, state.length)

    def _whole(self, state: StepState, row_F: Tensor, granted_F: Tensor, length_tokens: int) -> Tensor:
        positions = torch.arange(length_tokens, device=row_F.device).expand(len(row_F), length_tokens)
        slot_F1 = torch.where(granted_F, row_F, self.kv.slots)[:, None]
        inner = whole_sequences(state.length[row_F], length_tokens, self.kind, self.model.dtype)
        layout = Prefill(self.kv, self.kv.rows(slot_F1, positions), inner)
        hidden_FLD = self.model.hidden(self.ids(state, length_tokens)[row_F], positions, layout, self.features)
        return self.predicting(hidden_FLD, state.start[row_F])

    def _window(self, state: StepState, fresh: Tensor, length_tokens: int, view_tokens: int) -> Tensor:
        n, device = len(state.start), state.start.device
        position = state.start[:, None] + torch.arange(length_tokens, device=device)
        window_end = self._window_end(state)
        is_own = (position < window_end[:, None]) & ~fresh[:, None]
        slot = torch.where(is_own, torch.arange(n, device=device)[:, None], self.kv.slots)
        position = position.clamp_max(self.kv.capacity_tokens - 1)
        seen_end = (state.length if self.dual else window_end).clamp_min(1)
        seen_n1 = seen_by_spans(seen_end, length_tokens, commits=False)
        keys: SlotKeys = BiasedKeys(seen_n1, self.kv, view_tokens)
        if self.kind == "flex":
            keys = FlexKeys(seen_n1, length_tokens, self.kv, recurs=False)
        layout = BlockSpans(self.kv, slot, position, row_C=slot.new_empty(0), keys=keys)
        hidden_nQD = self.model.hidden(state.ids.gather(1, position), position, layout)
        return self.predicting(hidden_nQD, torch.zeros_like(state.start))


CACHES: dict[str, type[ExactBlockCache] | type[FullRecompute] | type[FrozenContext]] = {
    "exact": ExactBlockCache,
    "none": FullRecompute,
    "prefix": FrozenContext,
    "dual": FrozenContext,
}


def cache_policy(model: DiffusionLM, config: SamplingConfig, kv: SlotKV | None) -> CachePolicy:
    """The policy of `config.cache`; kv is None where it keeps no keys."""
    if kv is None:
        return FullRecompute(model, config)
    return ExactBlockCache(model, config, kv) if config.cache == "exact" else FrozenContext(model, config, kv)
