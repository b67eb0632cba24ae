"""Trajectory -> rows: what the trainer runs so that every token is scored exactly as the sampler saw it.

A block family's response becomes one sequence: one clean copy of prompt and canvas, then one noisy copy of each
block for each round (denoising step) that has trained tokens. A noisy block sees the clean blocks before its own
and itself; it holds what the sampler held at that step: earlier tokens in place, the mask id at every position
decided at that step or later, or never. Blocks lie on the absolute grid from position 0, so the prompt's tail
stands in the first noisy block as it is.

Shapes: S tokens of a row, N trained tokens of a row, C canvas tokens, K noisy copies, b block size.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.schema import TrainingConfig
from models.attention import Packed, Span
from sample.rollout import Key, Rollout
from train.algorithm.masking import Bools, Canvas, Ints, Method, NoisyCopy, sample_copies, trace

Floats = NDArray[np.float64]
_SPAN_TOKENS, _SPAN_TOKENS_CPU = 1024, 192


@dataclass(frozen=True)
class TrainingSample:
    """A response, replayed: all of it for a block family, one noisy copy of it under full attention.

    ids, positions, block, copy [S]: token ids, absolute positions, block on the grid, and 0 for the clean copy or
    the number of the noisy block copy. index [N]: where in the row the trained tokens are read; targets [N]: their
    ids; canvas_index [N]: their place in the canvas; round_index [N]: the round (rank of the step inside its
    block). num_rounds: rounds with trained tokens, the rows that dLLM-RL would run. weight [N]: of each token in the
    loss, before any normalisation.
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
    weight: Floats

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def num_trained(self) -> int:
        return len(self.index)


def trained_positions(rollout: Rollout, pad_id: int | None, post_num: int | None) -> Bools:
    """Bool [C]: the answer, then the first `post_num` decided pad ids after it (None: all of them). What was filled in
    without a forward (a step after the last) has no log-probability and is not trained."""
    place, step = np.arange(len(rollout.canvas_ids)), np.asarray(rollout.canvas_step_map)
    decided = (step > 0) & (step <= rollout.num_steps)
    trained = place < rollout.num_response_tokens
    if post_num != 0 and pad_id is not None:
        pads = ~trained & (np.asarray(rollout.canvas_ids) == pad_id) & decided
        if post_num is not None:
            pads &= np.cumsum(pads) <= post_num
        trained |= pads
    return trained & decided


@dataclass(frozen=True)
class Replayer:
    """How a model's responses become rows.

    attention, logit_shift, mask_id: the family's (`models.DiffusionLM`). block_size: on the absolute grid for block
    families, from the end of the prompt under full attention.
    """

    attention: Literal["block", "full"]
    logit_shift: bool
    mask_id: int
    block_size: int

    def canvas(self, prompt_tokens: int, step_C: Ints, trained_C: Bools) -> Canvas:
        place = np.arange(len(step_C))
        if self.attention == "full":
            return Canvas(step_C, trained_C, place // self.block_size, np.zeros_like(place))
        block = (prompt_tokens + place) // self.block_size
        return Canvas(step_C, trained_C, block, block)

    def rows(
        self, key: Key, prompt: Sequence[int], canvas: Sequence[int], copies: Sequence[NoisyCopy]
    ) -> list[TrainingSample]:
        """One packed row of all copies for a block family; a row a copy where attention is full or causal."""
        ids_P, ids_C = (np.asarray(ids, dtype=np.int64) for ids in (prompt, canvas))
        assert self.logit_shift or not any(copy.causal for copy in copies)
        if self.attention == "block":
            row = pack_row(key, ids_P, ids_C, copies, self.block_size, self.mask_id)
            return [] if row is None else [row]
        if self.logit_shift and not len(ids_P):
            raise ValueError(f"{key}: an empty prompt; the first token is read at the prompt's last position.")
        position = np.arange(len(ids_P) + len(ids_C))
        zeros = np.zeros_like(position)
        return [self._whole_row(key, ids_P, ids_C, copy, position, zeros) for copy in copies]

    def _whole_row(
        self, key: Key, prompt: Ints, canvas: Ints, copy: NoisyCopy, position: Ints, zeros: Ints
    ) -> TrainingSample:
        place = np.flatnonzero(copy.trained_C)
        return TrainingSample(
            key=key,
            ids=np.concatenate([prompt, np.where(copy.masked_C, self.mask_id, canvas)]),
            positions=position,
            block=position if copy.causal else zeros,
            copy=zeros,
            index=len(prompt) + place - self.logit_shift,
            targets=canvas[place],
            canvas_index=place,
            round_index=np.full(len(place), copy.round),
            num_rounds=1,
            weight=np.full(len(place), copy.weight),
        )


def by_response(rows: Sequence[TrainingSample]) -> list[list[int]]:
    """Places of the rows of each response (rows with one key), in the order of their first ones."""
    places: dict[Key, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row.key, []).append(i)
    return list(places.values())


def replay(
    rollout: Rollout,
    replayer: Replayer,
    training: TrainingConfig,
    *,
    method: Method = trace,
    pad_id: int | None = None,
    rng: np.random.Generator | None = None,
) -> list[TrainingSample]:
    """The rows that train a rollout; none when nothing of it is trained. rng draws the masks of the random methods, and
    which rows are kept under training.rows_per_response.

    Pads are counted within the response; under normalization `reference` within each round of a block family, as
    dLLM-RL does.
    """
    rng = rng or np.random.default_rng(0)
    per_round = training.normalization == "reference" and replayer.attention == "block"
    trained = trained_positions(rollout, pad_id, None if per_round else training.post_num)
    if training.max_gen_length is not None:
        trained[training.max_gen_length :] = False
    if not trained.any():
        return []
    canvas = replayer.canvas(len(rollout.prompt_ids), np.asarray(rollout.canvas_step_map, dtype=np.int64), trained)
    copies = method(canvas, training, rng)
    if per_round and training.post_num is not None:
        copies = limit_pads_per_round(copies, np.arange(len(trained)) >= rollout.num_response_tokens, training.post_num)
    if training.rows_per_response is not None and replayer.attention == "full":
        copies = sample_copies(copies, training.rows_per_response, rng)
    return replayer.rows(rollout.key, rollout.prompt_ids, rollout.canvas_ids, copies)


def pack_row(
    key: Key, prompt: Ints, canvas: Ints, noisy: Sequence[NoisyCopy], block_size: int, mask_id: int
) -> TrainingSample | None:
    """Clean copy of everything before the last noisy block, then the noisy blocks, as one `TrainingSample`; None
    without noisy blocks."""
    if not noisy:
        return None
    b, P = block_size, len(prompt)
    whole = np.concatenate([prompt, canvas])
    unit_K = np.array([copy.unit for copy in noisy])
    rounds_K = np.array([copy.round for copy in noisy])
    weight_K = np.array([copy.weight for copy in noisy])
    position_Kb = unit_K[:, None] * b + np.arange(b)
    exists_Kb = position_Kb < len(whole)
    place_Kb = np.clip(position_Kb - P, 0, len(canvas) - 1)
    in_canvas_Kb = exists_Kb & (position_Kb >= P)
    there = list(zip(noisy, place_Kb, strict=True))
    masked_Kb = in_canvas_Kb & np.array([copy.masked_C[place_b] for copy, place_b in there])
    trained_Kb = in_canvas_Kb & np.array([copy.trained_C[place_b] for copy, place_b in there])
    clean = int(unit_K.max()) * b
    offset_Kb = clean + np.cumsum(exists_Kb).reshape(exists_Kb.shape) - 1
    number_Kb = np.broadcast_to(np.arange(1, len(noisy) + 1)[:, None], exists_Kb.shape)
    copy_N = trained_Kb.nonzero()[0]
    position_S = np.concatenate([np.arange(clean), position_Kb[exists_Kb]])
    ids_S = whole[position_S]
    ids_S[clean:][masked_Kb[exists_Kb]] = mask_id
    return TrainingSample(
        key=key,
        ids=ids_S,
        positions=position_S,
        block=position_S // b,
        copy=np.concatenate([np.zeros(clean, dtype=np.int64), number_Kb[exists_Kb]]),
        index=offset_Kb[trained_Kb],
        targets=whole[position_Kb[trained_Kb]],
        canvas_index=place_Kb[trained_Kb],
        round_index=rounds_K[copy_N],
        num_rounds=len(set(rounds_K[copy_N].tolist())),
        weight=weight_K[copy_N],
    )


def limit_pads_per_round(copies: Sequence[NoisyCopy], after_answer_C: Bools, post_num: int) -> list[NoisyCopy]:
    """dLLM-RL's count of pads: the first post_num of each round are trained; copies left with nothing are left out."""
    kept = []
    seen: dict[int, int] = {}
    for copy in copies:
        pads_C = copy.trained_C & after_answer_C
        allowed_C = pads_C & (np.cumsum(pads_C) <= post_num - seen.get(copy.round, 0))
        seen[copy.round] = seen.get(copy.round, 0) + int(allowed_C.sum())
        kept.append(replace(copy, trained_C=(copy.trained_C & ~pads_C) | allowed_C))
    return [copy for copy in kept if copy.trained_C.any()]


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
    rows: Sequence[TrainingSample], which: Sequence[int], max_tokens: int, device: torch.device
) -> Iterator[MicroBatch]:
    """Packs rows[which] up to a token budget, rows of like length together. How rows are split never changes a
    result."""
    for group in within_budget(rows, which, max_tokens):
        yield pack(rows, group, device)


def within_budget(rows: Sequence[TrainingSample], which: Sequence[int], max_tokens: int) -> list[list[int]]:
    """The rows of each micro-batch; a row that is longer than the budget is one of its own."""
    groups: list[list[int]] = []
    total = 0
    for i in sorted(which, key=lambda i: (-rows[i].num_tokens, i)):
        total += rows[i].num_tokens
        if not groups or total > max_tokens:
            groups.append([])
            total = rows[i].num_tokens
        groups[-1].append(i)
    return groups


def span_tokens(device_type: str) -> int:
    """How long a span of a packed row is about."""
    return _SPAN_TOKENS_CPU if device_type == "cpu" else _SPAN_TOKENS


def pack(
    rows: Sequence[TrainingSample], which: Sequence[int], device: torch.device, tokens_a_span: int | None = None
) -> MicroBatch:
    """One packed micro-batch of the rows named by `which`; tokens_a_span: None = what suits the device."""
    chosen = [rows[i] for i in which]
    length = tokens_a_span or span_tokens(device.type)
    orders, spans = zip(*(_spans(row, device, length) for row in chosen), strict=True)
    starts = np.cumsum([0] + [row.num_tokens for row in chosen])

    def joined(arrays: Iterable[Ints]) -> Tensor:
        return torch.from_numpy(np.concatenate(list(arrays))).to(device)

    return MicroBatch(
        rows=list(which),
        ids=joined(row.ids[order] for row, order in zip(chosen, orders, strict=True))[None],
        positions=joined(row.positions[order] for row, order in zip(chosen, orders, strict=True))[None],
        layout=Packed(_side_by_side(spans)),
        index=joined(
            start + np.argsort(order)[row.index] for row, order, start in zip(chosen, orders, starts, strict=False)
        ),
        targets=joined(row.targets for row in chosen),
        row_of_N=np.concatenate([np.full(row.num_trained, i) for i, row in enumerate(chosen)]),
    )


def _spans(row: TrainingSample, device: torch.device, tokens_a_span: int) -> tuple[Ints, list[Span]]:
    """Order of the row's tokens [S] on the packed axis, and its spans: consecutive blocks, clean tokens first."""
    if not row.block.any() and not row.copy.any():
        return np.arange(row.num_tokens), [Span(0, row.num_tokens, None)]
    num_spans = -(-row.num_tokens // tokens_a_span)
    span_of_block = (np.cumsum(np.bincount(row.block)) - 1) * num_spans // row.num_tokens
    order = np.lexsort((row.copy > 0, span_of_block[row.block]))
    span, block, copy = span_of_block[row.block[order]], row.block[order], row.copy[order]
    spans = []
    for i in np.unique(span):
        inside = span == i
        num_shared = int((copy[inside] == 0).sum())
        own = (torch.from_numpy(x[inside]).to(device) for x in (block, copy))
        spans.append(Span(num_shared, int(inside.sum()) - num_shared, replay_mask(*own)))
    return order, spans


def _side_by_side(rows: Sequence[list[Span]]) -> list[list[Span]]:
    """Neighbouring rows of one span and one size as one entry, so that attention runs over all of them at once."""
    joined: list[list[Span]] = []
    for size, group in itertools.groupby(rows, lambda row: row[0].num_shared + row[0].num_own if len(row) == 1 else 0):
        members = list(group)
        masks = [row[0].mask_QQ for row in members if row[0].mask_QQ is not None]
        if size and len(members) > 1 and len(masks) in (0, len(members)):
            joined.append([Span(0, size, torch.stack(masks) if masks else None, len(members))])
        else:
            joined += members
    return joined


def replay_mask(block_S: Tensor, copy_S: Tensor) -> Tensor:
    """Bool [S, S], query by key: a clean token sees clean blocks up to its own, a noisy one the clean blocks before its
    own and its own copy."""
    block, copy = block_S[:, None], copy_S[:, None]
    return ((copy_S == 0) & (block_S < block)) | ((copy_S == copy) & (block_S == block))
