"""Training samples -> micro-batches: many sequences side by side on one packed axis. On a CPU it is cut into spans that
attention runs over; on a GPU FlexAttention runs over all of it.

Shapes: S tokens of a sample, T tokens of a micro-batch, N trained tokens.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models import Prompt
from models.attention import Layout, Packed, Span, attention_kind
from models.canvas import CanvasRows
from models.varlen import VarlenRows
from train.algorithm.masking import Ints
from train.algorithm.replay import TrainingSample, by_response

_SPAN_TOKENS, _SPAN_TOKENS_CPU = 1024, 192


@dataclass(frozen=True)
class TrainedTokens:
    """The trained tokens of some samples, one sample after another. samples: their places in the list that they were
    taken from; sample_of_N: which of these each token belongs to."""

    samples: Sequence[int]
    sample_of_N: Ints


@dataclass(frozen=True)
class MicroBatch(TrainedTokens):
    """Samples packed for one forward: ids and positions [1, T], of which num_tokens stand for samples and the rest pads
    (on a GPU; of texts with a canvas [B, T / B], a row a sample), the attention layout, and flat index [N] and targets
    [N] of the trained tokens. pictures: prompts whose rows of features, one prompt after another, negative ids number.
    experts [T, M, k]: of each token, where routing is replayed."""

    ids: Tensor
    positions: Tensor
    layout: Layout | CanvasRows
    index: Tensor
    targets: Tensor
    num_tokens: int
    pictures: tuple[Prompt, ...] = ()
    experts: Tensor | None = None


def trained_tokens(samples: Sequence[TrainingSample], which: Sequence[int]) -> TrainedTokens:
    """The trained tokens of samples[which], unpacked."""
    counts = [samples[i].num_trained for i in which]
    return TrainedTokens(list(which), np.repeat(np.arange(len(counts)), counts))


def within_budget(
    samples: Sequence[TrainingSample], which: Sequence[int], max_tokens: int, whole_responses: bool = False
) -> list[list[int]]:
    """The places of the samples of each micro-batch, samples of like length together; one longer than the budget stands
    alone. whole_responses: the samples of a response stay together. The split never changes a result."""
    units = [[i] for i in which]
    if whole_responses:
        units = [[which[i] for i in places] for places in by_response([samples[i] for i in which])]
    tokens = [sum(samples[i].num_tokens for i in unit) for unit in units]
    groups: list[list[int]] = []
    total = 0
    for place in sorted(range(len(units)), key=lambda place: (-tokens[place], units[place])):
        total += tokens[place]
        if not groups or total > max_tokens:
            groups.append([])
            total = tokens[place]
        groups[-1] += units[place]
    return groups


def span_tokens(device_type: str) -> int:
    """About how many tokens a span of a packed sample holds."""
    return _SPAN_TOKENS_CPU if device_type == "cpu" else _SPAN_TOKENS


def pack(
    samples: Sequence[TrainingSample], which: Sequence[int], device: torch.device, tokens_a_span: int | None = None
) -> MicroBatch:
    """One packed micro-batch of the samples named by `which`; tokens_a_span: None = what suits the device."""
    chosen = [samples[i] for i in which]
    if chosen[0].conditioned is not None:
        return _canvas_batch(samples, which, device)
    if attention_kind("auto", device) == "flex":
        return _flex_batch(samples, which, device)
    length = tokens_a_span or span_tokens(device.type)
    orders, spans = zip(*(_spans(sample, device, length) for sample in chosen), strict=True)
    starts = np.cumsum([0] + [sample.num_tokens for sample in chosen])
    pictures, ids = _with_one_table(chosen)

    def joined(arrays: Iterable[Ints]) -> Tensor:
        return torch.from_numpy(np.concatenate(list(arrays))).to(device)

    return MicroBatch(
        **vars(trained_tokens(samples, which)),
        ids=joined(of_sample[order] for of_sample, order in zip(ids, orders, strict=True))[None],
        positions=joined(sample.positions[order] for sample, order in zip(chosen, orders, strict=True))[None],
        layout=Packed(_side_by_side(spans)),
        index=joined(
            start + np.argsort(order)[sample.index]
            for sample, order, start in zip(chosen, orders, starts, strict=False)
        ),
        targets=joined(sample.targets for sample in chosen),
        num_tokens=int(starts[-1]),
        pictures=pictures,
        experts=_experts(chosen, orders, device),
    )


def _canvas_batch(samples: Sequence[TrainingSample], which: Sequence[int], device: torch.device) -> MicroBatch:
    """A row a sample: its text, pads, and its canvas at the right end."""
    chosen = [samples[i] for i in which]
    texts = [int((sample.copy == 0).sum()) for sample in chosen]
    longest, width = max(texts), max(texts) + chosen[0].num_tokens - texts[0]
    gaps = [longest - text for text in texts]
    ids, positions = (
        np.stack(
            [np.insert(getattr(s, name), [text] * gap, 0) for s, text, gap in zip(chosen, texts, gaps, strict=True)]
        )
        for name in ("ids", "positions")
    )
    index = [
        row * width + sample.index + np.where(sample.index < text, 0, gap)
        for row, (sample, text, gap) in enumerate(zip(chosen, texts, gaps, strict=True))
    ]
    seen = [int(sample.positions[text]) for sample, text in zip(chosen, texts, strict=True)]
    return MicroBatch(
        **vars(trained_tokens(samples, which)),
        ids=torch.from_numpy(ids).to(device),
        positions=torch.from_numpy(positions).to(device),
        layout=CanvasRows(
            torch.tensor(seen, device=device),
            torch.tensor([bool(sample.conditioned) for sample in chosen], device=device),
        ),
        index=torch.from_numpy(np.concatenate(index)).to(device),
        targets=torch.from_numpy(np.concatenate([sample.targets for sample in chosen])).to(device),
        num_tokens=sum(sample.num_tokens for sample in chosen),
    )


def _experts(samples: Sequence[TrainingSample], orders: Sequence[Ints], device: torch.device) -> Tensor | None:
    found = [sample.experts[order] for sample, order in zip(samples, orders, strict=True) if sample.experts is not None]
    assert len(found) in (0, len(samples)), "routing is replayed in all samples of a micro-batch or in none"
    return torch.from_numpy(np.concatenate(found)).to(device) if found else None


def _flex_batch(samples: Sequence[TrainingSample], which: Sequence[int], device: torch.device) -> MicroBatch:
    """Tokens in the samples' own order, padded to one of few lengths."""
    from models.flex_packed import FlexPacked, Tokens, padded_tokens

    chosen = [samples[i] for i in which]
    starts = np.cumsum([0] + [sample.num_tokens for sample in chosen])
    padded = padded_tokens(int(starts[-1]))

    def joined(arrays: Iterable[Ints], length: int | None = None) -> Tensor:
        array = np.concatenate(list(arrays))
        return torch.from_numpy(np.pad(array, (0, (length or len(array)) - len(array)))).to(device)

    pictures, ids = _with_one_table(chosen)
    experts = _experts(chosen, [np.arange(sample.num_tokens) for sample in chosen], device)
    tokens = Tokens(
        np.repeat(np.arange(len(chosen)), np.diff(starts)),
        np.concatenate([sample.block for sample in chosen]),
        np.concatenate([sample.copy for sample in chosen]),
    )
    layout: Layout = FlexPacked.of(tokens.padded(padded), device)
    if not tokens.block.any() and not tokens.copy.any():
        layout = VarlenRows.of([*starts.tolist(), padded], device, otherwise=layout)
    return MicroBatch(
        **vars(trained_tokens(samples, which)),
        ids=joined(ids, padded)[None],
        positions=joined((sample.positions for sample in chosen), padded)[None],
        layout=layout,
        index=joined(start + sample.index for sample, start in zip(chosen, starts, strict=False)),
        targets=joined(sample.targets for sample in chosen),
        num_tokens=int(starts[-1]),
        pictures=pictures,
        experts=None if experts is None else F.pad(experts, (0, 0, 0, 0, 0, padded - len(experts))),
    )


def _with_one_table(samples: Sequence[TrainingSample]) -> tuple[tuple[Prompt, ...], list[Ints]]:
    """The samples' prompts with pictures, each once, and every sample's ids, whose negative ones number the rows of all
    these prompts."""
    first: dict[Prompt, int] = {}
    rows, ids = 0, []
    for sample in samples:
        prompt = sample.prompt
        if prompt is not None and prompt not in first:
            first[prompt] = rows
            rows += prompt.rows
        ids.append(sample.ids if prompt is None else np.where(sample.ids < 0, sample.ids - first[prompt], sample.ids))
    return tuple(first), ids


def _spans(sample: TrainingSample, device: torch.device, tokens_a_span: int) -> tuple[Ints, list[Span]]:
    """Order of the sample's tokens [S] on the packed axis, and its spans: consecutive blocks, clean tokens first."""
    if not sample.block.any() and not sample.copy.any():
        return np.arange(sample.num_tokens), [Span(0, sample.num_tokens, None)]
    num_spans = -(-sample.num_tokens // tokens_a_span)
    span_of_block = (np.cumsum(np.bincount(sample.block)) - 1) * num_spans // sample.num_tokens
    order = np.lexsort((sample.copy > 0, span_of_block[sample.block]))
    span, block, copy = span_of_block[sample.block[order]], sample.block[order], sample.copy[order]
    spans = []
    for i in np.unique(span):
        inside = span == i
        num_shared = int((copy[inside] == 0).sum())
        own = (torch.from_numpy(x[inside]).to(device) for x in (block, copy))
        spans.append(Span(num_shared, int(inside.sum()) - num_shared, replay_mask(*own)))
    return order, spans


def _side_by_side(spans_of_samples: Sequence[list[Span]]) -> list[list[Span]]:
    """Neighbouring samples of one span and one size as one entry, so that attention runs over all of them at once."""

    def size_if_single(spans: list[Span]) -> int:
        return spans[0].num_shared + spans[0].num_own if len(spans) == 1 else 0

    joined: list[list[Span]] = []
    for size, group in itertools.groupby(spans_of_samples, size_if_single):
        members = list(group)
        masks = [spans[0].mask_QQ for spans in members if spans[0].mask_QQ is not None]
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
