"""FlexAttention over a sampler's slots: only the blocks of keys that a query can see are read, and lengths are numbers
on the device, so that other lengths need no other kernel.

What is seen is said twice: for each block of 128 queries which blocks of 128 keys it sees in part and which whole, and,
inside those seen in part, a rule on single positions. https://arxiv.org/abs/2412.05496

Shapes: n slots, Q queries of a slot, T keys of it, q and k blocks of 128 of them, B sequences, L tokens, H query heads,
G key-value heads, d head size.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from models import compiled

BLOCK_TOKENS = 128
LEAST_HEAD_SIZES = {"cuda": 16}
"""Of a device's kernels."""
_DECODING_ROWS = 64
"""Query rows, heads of a group among them, that a program of FlexAttention's decoding kernel takes at most. torch gives
one program all of them: from 128 on their sums leave the registers (a step took 11 times as long on an H200), and above
128 it finds no kernel at all."""
_ROOMY_BYTES = 160 * 1024
"""Shared memory of a program, as an A100 or H100 has it, into which three tiles of keys and values of 128 numbers of 2
bytes fit."""

compiled.raise_limit()


class Blocks(NamedTuple):
    """Blocks of keys that each block of queries sees, int32: the number of those seen in part [n, 1, q], and which [n,
    1, q, k], these first; the same of whole ones."""

    partial: Tensor
    partial_index: Tensor
    whole: Tensor
    whole_index: Tensor


def blocks_before(seen_nQ: Tensor, keys: int) -> Blocks:
    """For queries that see the first seen_nQ keys of their slot. Beyond one block of queries all of a slot see the
    same."""
    q, k = _blocks(seen_nQ.shape[1]), _blocks(keys)
    index_k = torch.arange(k, dtype=torch.int32, device=seen_nQ.device)
    whole_n1 = seen_nQ.amin(1, keepdim=True) // BLOCK_TOKENS
    partial_n1 = -(-seen_nQ.amax(1, keepdim=True) // BLOCK_TOKENS) - whole_n1
    partial_index_nk = (whole_n1.int() + index_k).clamp_max(k - 1)

    def numbers(value_n1: Tensor) -> Tensor:
        return value_n1.int()[:, :, None].expand(-1, 1, q).contiguous()

    def which(index_nk: Tensor) -> Tensor:
        return index_nk[:, None, None].expand(len(seen_nQ), 1, q, k).contiguous()

    return Blocks(
        numbers(partial_n1), which(partial_index_nk), numbers(whole_n1), which(index_k.expand_as(partial_index_nk))
    )


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def _slots(
    query: Tensor, key: Tensor, value: Tensor, seen_nQ: Tensor, blocks: Blocks, options: dict[str, int] | None = None
) -> Tensor:
    def sees(slot: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key < seen_nQ[slot, query]

    mask = BlockMask.from_kv_blocks(
        *blocks,
        BLOCK_SIZE=BLOCK_TOKENS,
        mask_mod=sees,
        seq_lengths=(query.shape[2], key.shape[2]),
        compute_q_blocks=False,
    )
    return flex_attention(
        query,
        key,
        value,
        block_mask=mask,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=options,  # type: ignore[arg-type]
    )


def kernel_options(query_nHQd: Tensor, key_nGTd: Tensor) -> dict[str, int] | None:
    """What FlexAttention's kernel for fewer than 128 queries is told; None = torch's own choice, also where another
    kernel runs, as for groups of heads that are no power of two, and below 32 rows, which have not been measured.
    Measured on an H200 with programs of 32 and 64 rows: benchmarks/RESULTS.md."""
    _, H, Q, d = query_nHQd.shape
    group = H // key_nGTd.shape[1]
    if query_nHQd.device.type != "cuda" or Q >= BLOCK_TOKENS or group & (group - 1) or Q * group < 32:
        return None
    options = {"BLOCK_M": _DECODING_ROWS} if Q * group > _DECODING_ROWS else {}
    if d <= 128 and query_nHQd.dtype.itemsize <= 2 and _shared_bytes(query_nHQd.device) >= _ROOMY_BYTES:
        return options | {"num_warps": 4, "num_stages": 3}
    return options | {"num_warps": 4} if Q * group > 32 else None  # torch rounds rows up to a power of two


@functools.cache
def _shared_bytes(device: torch.device) -> int:
    """Shared memory that a program may have on a GPU."""
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 0))  # AMD's have none


def _slots_of_a_shape(
    query: Tensor, key: Tensor, value: Tensor, seen_nQ: Tensor, blocks: Blocks, options: dict[str, int] | None
) -> Tensor:
    return _slots(query, key, value, seen_nQ, blocks, options)


def _slots_of_any_shape(query: Tensor, key: Tensor, value: Tensor, seen_nQ: Tensor, blocks: Blocks) -> Tensor:
    return _slots(query, key, value, seen_nQ, blocks)


_fixed: Callable[..., Tensor] = torch.compile(_slots_of_a_shape, dynamic=False, fullgraph=True)
_dynamic: Callable[..., Tensor] = torch.compile(_slots_of_any_shape, dynamic=True, fullgraph=True)


@torch.library.custom_op("dllm::slot_attention", mutates_args=())
def _slot_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    partial: Tensor,
    partial_index: Tensor,
    whole: Tensor,
    whole_index: Tensor,
    recurs: bool,
) -> Tensor:
    blocks = Blocks(partial, partial_index, whole, whole_index)
    if recurs or query.device.type == "cpu":
        return _fixed(query, key, value, seen, blocks, kernel_options(query, key))
    return _dynamic(query, key, value, seen, blocks)


@_slot_attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    partial: Tensor,
    partial_index: Tensor,
    whole: Tensor,
    whole_index: Tensor,
    recurs: bool,
) -> Tensor:
    return torch.empty_like(query)


def slot_attention(
    query_nHQd: Tensor,
    key_nGTd: Tensor,
    value_nGTd: Tensor,
    seen_nQ: Tensor,
    blocks: Blocks,
    scale: float,
    recurs: bool,
) -> Tensor:
    """Attention output [n, H, Q, d] of queries that see the first seen_nQ (int32) keys of their slot; 0 where that is
    none. recurs: the shape will come again and again, so a kernel is compiled for it alone; else one for all shapes,
    but on a CPU (torch 2.13 writes C++ there that does not compile). No gradient."""
    size = query_nHQd.shape[-1]
    query, key, value = widened(query_nHQd, key_nGTd, value_nGTd, scale)
    return _slot_attention(query, key, value, seen_nQ, *blocks, recurs)[..., :size]


def widened(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same attention under the default scale 1 / sqrt(d), which every family has, with zeros up to the least head
    size of the device."""
    size = query.shape[-1]
    assert math.isclose(scale, size**-0.5)
    least = LEAST_HEAD_SIZES.get(query.device.type, 1)
    if size >= least:
        return query, key, value
    padding = (0, least - size)
    return F.pad(query * (least / size) ** 0.5, padding), F.pad(key, padding), F.pad(value, padding)


@dataclass(frozen=True)
class FlexSequences:
    """Ordinary sequences [B, L], padded: every token sees the first tokens of its own, as many as `of` was told."""

    seen_BL: Tensor
    blocks: Blocks

    @staticmethod
    def of(end_B: Tensor, length_tokens: int) -> "FlexSequences":
        seen_BL = end_B.int()[:, None].expand(-1, length_tokens).contiguous()
        return FlexSequences(seen_BL, blocks_before(seen_BL, length_tokens))

    def attend(self, layer: int, query_BHLd: Tensor, key_BGLd: Tensor, value_BGLd: Tensor, scale: float) -> Tensor:
        out = slot_attention(query_BHLd, key_BGLd, value_BGLd, self.seen_BL, self.blocks, scale, recurs=False)
        return out.transpose(1, 2)
