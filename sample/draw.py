"""Tokens drawn from logits: filters, inverse-CDF draws and argmax over a large vocabulary.

Shapes: N positions, V vocabulary.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 128


class Drawing(NamedTuple):
    """How a request's tokens are drawn: the fields of `Choices` of these names."""

    temperature: float
    top_k: int
    top_p: float

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def filters(self) -> bool:
        """Whether tokens are drawn from another distribution than the model's."""
        return not self.greedy and (self.temperature != 1.0 or self.top_k > 0 or self.top_p < 1.0)


GREEDY = Drawing(temperature=0.0, top_k=0, top_p=1.0)


class Mix(NamedTuple):
    """What the requests at work need, each with its own `Drawing`: whether any draws, whether any draws from a filtered
    distribution. A row's token does not depend on it."""

    draws: bool
    filters: bool


class Drawings(NamedTuple):
    """`Drawing` of N positions: temperature and top_p fp32, top_k int64."""

    mix: Mix
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor

    @property
    def greedy(self) -> Tensor:
        return (self.temperature == 0.0) | (self.top_k == 1)

    @property
    def filters(self) -> Tensor:
        return (self.temperature != 1.0) | (self.top_k > 0) | (self.top_p < 1.0)


def draw(weight_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """Inverse-CDF sample [N] from unnormalised weights >= 0: first the chunk of the vocabulary, then the token in it.

    Two levels keep the cumulative sums short (exact enough in float64) and touch the vocabulary once. Weights that are
    not finite give some index.
    """
    chunks = _chunked(weight_NV, fill=0.0)
    chunk, fraction = _pick(chunks.sum(-1).double(), uniform_N)
    token, _ = _pick(_chunk_at(chunks, chunk).double(), fraction)
    return (chunk * CHUNK + token).clamp_max(weight_NV.shape[-1] - 1)


def argmax(value_NV: Tensor) -> Tensor:
    """Index [N] of the largest value, the leftmost of equal ones: chunk, then token, which is faster on a CPU."""
    chunks = _chunked(value_NV, fill=-math.inf)
    chunk = chunks.amax(-1).argmax(-1)
    return (chunk * CHUNK + _chunk_at(chunks, chunk).argmax(-1)).clamp_max(value_NV.shape[-1] - 1)


def _chunked(value_NV: Tensor, fill: float) -> Tensor:
    """[N, V / 128, 128], padded where 128 does not divide V."""
    if rest := value_NV.shape[-1] % CHUNK:
        value_NV = torch.nn.functional.pad(value_NV, (0, CHUNK - rest), value=fill)
    return value_NV.view(len(value_NV), -1, CHUNK)


def _chunk_at(chunks: Tensor, chunk_N: Tensor) -> Tensor:
    return chunks.gather(1, chunk_N[:, None, None].expand(-1, 1, CHUNK))[:, 0]


def _pick(weight: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Index drawn along the last axis, and the uniform number that is left over for the next level."""
    cumulative = weight.cumsum(-1)
    goal = uniform.clamp_max(1.0 - 1e-12)[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, goal, right=True).clamp_max(weight.shape[-1] - 1)
    mass = weight.gather(-1, index)
    left = (goal - (cumulative.gather(-1, index) - mass)) / mass.clamp_min(torch.finfo(torch.float64).tiny)
    return index[:, 0], left[:, 0].clamp_min(0.0)


def filtered(logits_NV: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Logits after temperature, top_k and top_p, in this order; -inf = not to be drawn.

    top_k keeps what is at least as likely as the k-th token, top_p what is at least as likely as the token with which
    the sum of the likeliest ones reaches it: equal tokens are kept or dropped together.
    """
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    ordered = None
    if 0 < top_k < logits_NV.shape[-1]:
        ordered = logits_NV.topk(top_k, dim=-1).values
        logits_NV = logits_NV.masked_fill(logits_NV < ordered[:, -1:], -math.inf)
    if top_p == 1.0:
        return logits_NV
    if ordered is None and logits_NV.device.type != "cpu":
        return logits_NV.masked_fill(~in_nucleus(logits_NV, top_p), -math.inf)
    if ordered is None:
        ordered = logits_NV.sort(dim=-1, descending=True).values
    probability = (ordered - logits_NV.logsumexp(-1, keepdim=True)).exp()
    kept = (probability.cumsum(-1) - probability < top_p).sum(-1, keepdim=True)
    return logits_NV.masked_fill(logits_NV < ordered.gather(-1, kept - 1), -math.inf)


def in_nucleus(logits_NV: Tensor, top_p: float) -> Tensor:
    """What top_p keeps, bool [N, V], without a sort, which would move the vocabulary many times on a GPU.

    The smallest logit that is kept is the largest from which on the tokens have at least so much probability. It is
    found bit by bit, in 32 sums over the vocabulary.
    """
    bits_NV, probability_NV = _ordered_bits(logits_NV), logits_NV.softmax(-1)

    def enough(floor_N1: Tensor) -> Tensor:
        return torch.where(bits_NV >= floor_N1, probability_NV, 0.0).sum(-1, keepdim=True) >= top_p

    zero = torch.zeros_like(bits_NV[:, :1])
    floor_N1 = torch.where(enough(zero), zero, torch.iinfo(torch.int32).min)
    for bit in reversed(range(31)):
        higher = floor_N1 + (1 << bit)
        floor_N1 = torch.where(enough(higher), higher, floor_N1)
    return bits_NV >= floor_N1


def _ordered_bits(value_NV: Tensor) -> Tensor:
    """int32 in the order of these fp32 numbers, equal for equal ones (0 and -0 among them)."""
    bits = (value_NV + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def filtered_each(logits_NV: Tensor, drawings: Drawings) -> Tensor:
    """`filtered`, each row by its own temperature, top_k and top_p; a greedy row has temperature 1 here. A row's
    result does not depend on the others: all are sorted."""
    V = logits_NV.shape[-1]
    temperature_N = drawings.temperature.masked_fill(drawings.temperature == 0.0, 1.0)
    logits_NV = logits_NV / temperature_N[:, None]
    ordered = logits_NV.sort(dim=-1, descending=True).values
    k_N1 = torch.where(drawings.top_k > 0, drawings.top_k, V).clamp_max(V)[:, None]
    logits_NV = logits_NV.masked_fill(logits_NV < ordered.gather(-1, k_N1 - 1), -math.inf)
    among_k = torch.arange(V, device=logits_NV.device) < k_N1
    probability = (ordered - logits_NV.logsumexp(-1, keepdim=True)).exp() * among_k
    top_p_N1 = drawings.top_p[:, None]
    kept = ((probability.cumsum(-1) - probability < top_p_N1) & among_k).sum(-1, keepdim=True)
    kept = torch.where(top_p_N1 < 1.0, kept, k_N1).clamp_min(1)  # slots that are not live have a top_p of 0
    return logits_NV.masked_fill(logits_NV < ordered.gather(-1, kept - 1), -math.inf)
