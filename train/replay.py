"""Trajectory -> rows: what the trainer runs so that every token is scored exactly as the sampler saw it.

A block family's response becomes one sequence: one clean copy of prompt and canvas, then one noisy copy of each
block for each round (denoising step) that has trained tokens. A noisy block sees the clean blocks before its own
and itself; it holds what the sampler held at that step: earlier tokens in place, the mask id at every position
decided at that step or later, or never. Blocks lie on the absolute grid from position 0, so the prompt's tail
stands in the first noisy block as it is.

Shapes: S tokens of a row, N trained tokens of a row, C canvas tokens, b block size.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.attention import Packed, Span
from sample.rollout import Key, Rollout

Ints = NDArray[np.int64]
_SPAN_TOKENS, _SPAN_TOKENS_CPU = 1024, 192


@dataclass(frozen=True)
class Row:
    """One response, replayed.

    ids, positions, block, copy [S]: token ids, absolute positions, block on the grid, and 0 for the clean copy or
    the number of the noisy block copy. index [N]: where in the row the trained tokens are read; targets [N]: their
    ids; canvas_index [N]: their place in the canvas; round_index [N]: the round (rank of the step inside its
    block). num_rounds: rounds with trained tokens, the rows that dLLM-RL would run for this response.
    """

    key: Key
    ids: Ints
    positions: Ints
    block: Ints
    copy: Ints
    index: Ints
    targets: Ints
    canvas_index: Ints
    round_index: Ints
    num_rounds: int

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def num_trained(self) -> int:
        return len(self.index)


def shrink_steps(step_map_C: Ints, group_C: Ints, shrink: int) -> Ints:
    """Merges neighbouring steps: the distinct steps of each group (a block), ascending, are taken `shrink` at a
    time and each is replaced by the largest of its set (TraceRL, arXiv:2509.06949). Steps 0 (undecided) stay 0."""
    if shrink == 1:
        return step_map_C
    out = step_map_C.copy()
    for group in np.unique(group_C):
        inside = (group_C == group) & (step_map_C > 0)
        steps = np.unique(step_map_C[inside])
        if len(steps):
            last = np.minimum((np.arange(len(steps)) // shrink + 1) * shrink, len(steps)) - 1
            out[inside] = steps[last][np.searchsorted(steps, step_map_C[inside])]
    return out


def trained_positions(rollout: Rollout, pad_id: int | None, post_num: int | None) -> NDArray[np.bool_]:
    """Bool [C]: the answer, then the first `post_num` decided pad ids after it (None: all of them)."""
    place = np.arange(len(rollout.canvas_ids))
    trained = place < rollout.num_response_tokens
    if post_num != 0 and pad_id is not None:
        pads = ~trained & (np.asarray(rollout.canvas_ids) == pad_id) & (np.asarray(rollout.canvas_step_map) > 0)
        if post_num is not None:
            pads &= np.cumsum(pads) <= post_num
        trained |= pads
    return trained & (np.asarray(rollout.canvas_step_map) > 0)


def replay_blocks(
    rollout: Rollout,
    *,
    block_size: int,
    mask_id: int,
    shrink: int = 1,
    pad_id: int | None = None,
    post_num: int | None = 0,
    post_num_per_round: bool = False,
) -> Row | None:
    """TraceRL rows of a block family's rollout, packed in one sequence; None when nothing is trained.

    post_num_per_round: count pads within each round, as dLLM-RL does, instead of within the response.
    """
    P, b = len(rollout.prompt_ids), block_size
    canvas = np.asarray(rollout.canvas_ids, dtype=np.int64)
    place = np.arange(len(canvas))
    group = (P + place) // b
    step = shrink_steps(np.asarray(rollout.canvas_step_map, dtype=np.int64), group, shrink)
    trained = trained_positions(rollout, pad_id, None if post_num_per_round else post_num)
    first = P // b
    visible_after = np.where(step == 0, np.iinfo(np.int64).max, step)
    noisy: list[NoisyBlock] = []
    for j in np.unique(group[trained]):
        inside = group == j
        for rank, s in enumerate(np.unique(step[inside & (step > 0)])):
            noisy.append(NoisyBlock(int(j), rank, inside & (visible_after >= s), inside & trained & (step == s)))
    if post_num_per_round and post_num is not None:
        noisy = _limit_pads_per_round(noisy, place >= rollout.num_response_tokens, post_num)
    noisy = [block for block in noisy if block.trained_C.any()]
    return pack_row(rollout.key, np.asarray(rollout.prompt_ids, dtype=np.int64), canvas, noisy, b, first, mask_id)


@dataclass(frozen=True)
class NoisyBlock:
    """One noisy copy of block `block`: masked_C and trained_C [C] say which canvas positions hold the mask id and
    are trained."""

    block: int
    round: int
    masked_C: NDArray[np.bool_]
    trained_C: NDArray[np.bool_]


def pack_row(
    key: Key, prompt: Ints, canvas: Ints, noisy: Sequence[NoisyBlock], block_size: int, first_block: int, mask_id: int
) -> Row | None:
    """Clean copy of everything before the last noisy block, then the noisy blocks, as one `Row`; None without noisy
    blocks."""
    if not noisy:
        return None
    b, P = block_size, len(prompt)
    whole = np.concatenate([prompt, canvas])
    clean = max(block.block for block in noisy) * b
    ids, positions, copies = [whole[:clean]], [np.arange(clean)], [np.zeros(clean, dtype=np.int64)]
    index, targets, canvas_index, rounds = [], [], [], []
    offset = clean
    for number, block in enumerate(noisy, start=1):
        span = np.arange(block.block * b, min(block.block * b + b, len(whole)))
        place = span - P
        in_canvas = place >= 0
        masked = in_canvas & block.masked_C[np.maximum(place, 0)]
        trained = np.flatnonzero(in_canvas & block.trained_C[np.maximum(place, 0)])
        ids.append(np.where(masked, mask_id, whole[span]))
        positions.append(span)
        copies.append(np.full(len(span), number))
        index.append(offset + trained)
        targets.append(whole[span[trained]])
        canvas_index.append(place[trained])
        rounds.append(np.full(len(trained), block.round))
        offset += len(span)
    position = np.concatenate(positions)
    round_index = np.concatenate(rounds)
    return Row(
        key=key,
        ids=np.concatenate(ids),
        positions=position,
        block=position // b,
        copy=np.concatenate(copies),
        index=np.concatenate(index),
        targets=np.concatenate(targets),
        canvas_index=np.concatenate(canvas_index),
        round_index=round_index,
        num_rounds=len(np.unique(round_index)),
    )


def _limit_pads_per_round(
    noisy: Sequence[NoisyBlock], after_answer_C: NDArray[np.bool_], post_num: int
) -> list[NoisyBlock]:
    kept = []
    seen: dict[int, int] = {}
    for block in noisy:
        pads = block.trained_C & after_answer_C
        room = post_num - seen.get(block.round, 0)
        allowed = pads & (np.cumsum(pads) <= room)
        seen[block.round] = seen.get(block.round, 0) + int(allowed.sum())
        kept.append(NoisyBlock(block.block, block.round, block.masked_C, (block.trained_C & ~pads) | allowed))
    return kept


@dataclass(frozen=True)
class MicroBatch:
    """Rows packed for one forward: ids and positions [1, T], the attention layout, and the N trained tokens' flat
    index and targets.

    row_of_N: which of `rows` each trained token belongs to.
    """

    rows: Sequence[int]
    ids: Tensor
    positions: Tensor
    layout: Packed
    index: Tensor
    targets: Tensor
    row_of_N: Ints


def micro_batches(
    rows: Sequence[Row], which: Sequence[int], max_tokens: int, device: torch.device
) -> Iterator[MicroBatch]:
    """Packs rows[which] up to a token budget, rows of like length together. How rows are split never changes a
    result."""
    batch: list[int] = []
    total = 0
    for i in sorted(which, key=lambda i: (-rows[i].num_tokens, i)):
        if batch and total + rows[i].num_tokens > max_tokens:
            yield pack(rows, batch, device)
            batch, total = [], 0
        batch.append(i)
        total += rows[i].num_tokens
    if batch:
        yield pack(rows, batch, device)


def pack(rows: Sequence[Row], which: Sequence[int], device: torch.device) -> MicroBatch:
    """One packed micro-batch of the rows named by `which`."""
    chosen = [rows[i] for i in which]
    orders, spans = zip(*(_spans(row, device) for row in chosen), strict=True)
    starts = np.cumsum([0] + [row.num_tokens for row in chosen])

    def joined(arrays: Iterable[Ints]) -> Tensor:
        return torch.from_numpy(np.concatenate(list(arrays))).to(device)

    return MicroBatch(
        rows=list(which),
        ids=joined(row.ids[order] for row, order in zip(chosen, orders, strict=True))[None],
        positions=joined(row.positions[order] for row, order in zip(chosen, orders, strict=True))[None],
        layout=Packed(spans),
        index=joined(
            start + np.argsort(order)[row.index] for row, order, start in zip(chosen, orders, starts, strict=False)
        ),
        targets=joined(row.targets for row in chosen),
        row_of_N=np.concatenate([np.full(row.num_trained, i) for i, row in enumerate(chosen)]),
    )


def _spans(row: Row, device: torch.device) -> tuple[Ints, list[Span]]:
    """Order of the row's tokens [S] on the packed axis, and its spans: consecutive blocks, clean tokens first."""
    num_spans = -(-row.num_tokens // (_SPAN_TOKENS_CPU if device.type == "cpu" else _SPAN_TOKENS))
    span_of_block = (np.cumsum(np.bincount(row.block)) - 1) * num_spans // row.num_tokens
    order = np.lexsort((row.copy > 0, span_of_block[row.block]))
    span, block, copy = span_of_block[row.block[order]], row.block[order], row.copy[order]
    spans = []
    for i in np.unique(span):
        queries, keys = np.flatnonzero(span == i), np.flatnonzero((span == i) | ((span < i) & (copy == 0)))
        sides = (torch.from_numpy(x[chosen]).to(device) for chosen in (queries, keys) for x in (block, copy))
        num_shared = int((copy[queries] == 0).sum())
        spans.append(Span(num_shared, len(queries) - num_shared, replay_mask(*sides)))
    return order, spans


def replay_mask(query_block_Q: Tensor, query_copy_Q: Tensor, key_block_K: Tensor, key_copy_K: Tensor) -> Tensor:
    """Bool [Q, K]: a clean token sees clean blocks up to its own, a noisy one the clean blocks before its own and its
    own copy."""
    block, copy = query_block_Q[:, None], query_copy_Q[:, None]
    return ((key_copy_K == 0) & (key_block_K < block)) | ((key_copy_K == copy) & (key_block_K == block))
