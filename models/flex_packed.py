"""FlexAttention over packed rows, whose tokens see clean blocks before their own and their own copy of their block.

Nothing grows with the square of the tokens but one small matrix: a block of 128 tokens is known by the least and the
largest row, block and copy in it.

Shapes: T tokens of a packed axis, t = T / 128 blocks of them, H query heads, G key-value heads, d head size.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from models.flex import BLOCK_TOKENS, widened

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_NONE = np.iinfo(np.int64).max


class Tokens(NamedTuple):
    """Where each token of a packed axis stands, [T] each: its row, its block of the row, and its copy of that block,
    0 = the clean one. A token sees the clean tokens of earlier blocks of its row, and those of its own copy and
    block."""

    row: Ints
    block: Ints
    copy: Ints

    def padded(self, tokens: int) -> "Tokens":
        """With tokens after these, up to so many, each of which sees itself alone."""
        more = np.arange(
            1, tokens - len(self.row) + 1
        )  # beyond all others, so that a block with both has no wide range
        return Tokens(*(np.concatenate([column, column.max() + more]) for column in self))


def padded_tokens(tokens: int) -> int:
    """The next multiple of 128 and of about a sixteenth of the tokens: few lengths, at most a sixteenth of padding from
    2,048 tokens on."""
    step = max(BLOCK_TOKENS, 2 ** max(0, tokens.bit_length() - 5))
    return -(-tokens // step) * step


def blocks_seen(tokens: Tokens) -> tuple[Bools, Bools]:
    """[t, t], query block by key block: seen in part, so that single tokens have to be looked at, and seen whole. A
    block of which nothing is seen may count as seen in part where its least and largest numbers do not tell."""
    everyone = np.ones_like(tokens.copy, dtype=np.bool_)
    row, block, copy = (_Range.of(numbers, everyone) for numbers in tokens)
    clean = _Range.of(tokens.block, tokens.copy == 0)
    noisy_block, noisy_copy = (_Range.of(numbers, tokens.copy > 0) for numbers in (tokens.block, tokens.copy))
    seen_clean = (block.most > clean.least.T) | (clean.most >= clean.least.T)
    possible = row.meets() & (seen_clean | (noisy_block.meets() & noisy_copy.meets()))
    all_clean = copy.most.T == 0
    whole = all_clean & (block.least > block.most.T)
    whole |= all_clean & (copy.most == 0) & (block.least >= block.most.T)
    whole |= copy.equals() & block.equals()
    whole &= row.equals()
    return possible & ~whole, whole


class _Range(NamedTuple):
    """Least and largest number in each block, [t, 1]; of keys when transposed. Where there is none the least is beyond
    all numbers and the largest is below them."""

    least: Ints
    most: Ints

    @staticmethod
    def of(numbers_T: Ints, counted_T: Bools) -> "_Range":
        numbers, counted = (x.reshape(-1, BLOCK_TOKENS) for x in (numbers_T, counted_T))
        least, most = np.where(counted, numbers, _NONE).min(1), np.where(counted, numbers, -1).max(1)
        return _Range(least[:, None], most[:, None])

    def meets(self) -> Bools:
        return (self.most >= self.least.T) & (self.least <= self.most.T)

    def equals(self) -> Bools:
        return (self.least == self.most) & (self.least.T == self.most.T) & (self.least == self.least.T)


def _packed(query: Tensor, key: Tensor, value: Tensor, where: Sequence[Tensor], seen: Sequence[Tensor]) -> Tensor:
    row, block, copy = where

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        before = (copy[key] == 0) & (block[key] < block[query])
        own = (copy[key] == copy[query]) & (block[key] == block[query])
        return (row[key] == row[query]) & (before | own)

    by_query, all_by_query, by_key, all_by_key = zip(seen[::2], seen[1::2], strict=True)
    mask = BlockMask(
        seq_lengths=(query.shape[2], key.shape[2]),
        kv_num_blocks=by_query[0],
        kv_indices=by_query[1],
        full_kv_num_blocks=all_by_query[0],
        full_kv_indices=all_by_query[1],
        q_num_blocks=by_key[0],
        q_indices=by_key[1],
        full_q_num_blocks=all_by_key[0],
        full_q_indices=all_by_key[1],
        BLOCK_SIZE=(BLOCK_TOKENS, BLOCK_TOKENS),
        mask_mod=sees,
    )
    return flex_attention(query, key, value, block_mask=mask, enable_gqa=query.shape[1] != key.shape[1])


@functools.cache
def _compiled(device_type: str) -> Callable[..., Tensor]:
    """For all lengths; on a CPU for each (torch 2.13 writes C++ for open lengths that does not compile)."""
    return torch.compile(_packed, dynamic=device_type != "cpu", fullgraph=True)


@dataclass(frozen=True)
class FlexPacked:
    """Rows of `Tokens` on one packed token axis (B = 1), a multiple of 128 tokens long.

    where: row, block and copy, [T] each. seen: how many blocks [1, 1, t] each block sees in part, and which [1, 1, t,
    t] (these first), the same of those seen whole, and both the other way, key block by query block, for gradients. All
    int32, each with memory of its own, which FlexAttention's C++ asks for.
    """

    where: tuple[Tensor, ...]
    seen: tuple[Tensor, ...]

    @staticmethod
    def of(tokens: Tokens, device: torch.device) -> "FlexPacked":
        partial, whole = blocks_seen(tokens)
        numbers = []
        for seen_tt in (partial, whole, partial.T, whole.T):
            numbers += [seen_tt.sum(-1)[None, None], np.argsort(~seen_tt, axis=-1, kind="stable")[None, None]]
        where, seen = (
            tuple(torch.from_numpy(x.astype(np.int32)).to(device) for x in part) for part in (tokens, numbers)
        )
        return FlexPacked(where, seen)

    def attend(self, layer: int, query_BHLd: Tensor, key_BGLd: Tensor, value_BGLd: Tensor, scale: float) -> Tensor:
        size = query_BHLd.shape[-1]
        query, key, value = widened(query_BHLd, key_BGLd, value_BGLd, scale)
        out = _compiled(query.device.type)(query, key, value, self.where, self.seen)
        return out[..., :size].transpose(1, 2)
