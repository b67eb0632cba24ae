"""Which tokens a denoising step proposes, how sure it is of them, and which positions it commits: small batched pure functions.

Shapes: n slots, b positions of a block, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

_CHUNK = 256
_GOLDEN, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
_TOKEN_STREAM, _ORDER_STREAM = 0, 1


class Choices(Protocol):
    """The part of SamplingConfig that a step reads."""

    temperature: float
    top_k: int
    top_p: float
    confidence: str
    target: str
    strategy: str
    threshold: float
    entropy_bound: float
    pad_id: int | None
    pad_target_penalty: float
    seed: int

    @property
    def greedy(self) -> bool: ...


class Proposal(NamedTuple):
    """A step's candidate for every position: token, its log-probability at temperature 1, its score under the target, and the
    entropy (nats) where the strategy needs it. All [n, b]."""

    token: Tensor
    logp: Tensor
    score: Tensor
    entropy: Tensor | None


def schedule(positions: int, steps: int) -> list[int]:
    """How many positions each of `steps` steps commits: an even share, the first steps one more (the remainder first)."""
    share, rest = divmod(positions, steps)
    return [share + (i < rest) for i in range(steps)]


def hash_uniform(seed: int, key_n: Tensor, position_nb: Tensor, step_n: Tensor, stream: int) -> Tensor:
    """Uniform numbers in [0, 1), float64 [n, b], a pure function of their arguments: no generator, no batch mate enters.

    splitmix64's finaliser (Steele et al. 2014) in wrapping int64 arithmetic, the same on every device.
    """
    state = _mix(key_n[:, None] + _GOLDEN * (seed * 2 + stream + 1) % 2**63)
    state = _mix(state ^ (position_nb * _GOLDEN))
    state = _mix(state ^ (step_n[:, None] * _MIX_1))
    return ((state >> 11) & (2**53 - 1)).double() * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def draw(weight_nbV: Tensor, uniform_nb: Tensor) -> Tensor:
    """Inverse-CDF sample [n, b] from unnormalised weights >= 0: first the chunk of the vocabulary, then the token inside it.

    Two levels keep the cumulative sums short (exact enough in float64) and touch the vocabulary once.
    """
    n, b, V = weight_nbV.shape
    if V % _CHUNK:
        weight_nbV = torch.nn.functional.pad(weight_nbV, (0, _CHUNK - V % _CHUNK))
    chunked = weight_nbV.view(n, b, -1, _CHUNK)
    chunk, fraction = _pick(chunked.sum(-1).double(), uniform_nb)
    inner = chunked.gather(2, chunk[..., None, None].expand(n, b, 1, _CHUNK))[:, :, 0].double()
    token, _ = _pick(inner, fraction)
    return chunk * _CHUNK + token


def _pick(weight: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Index drawn along the last axis, and the uniform number that is left over for the next level."""
    cumulative = weight.cumsum(-1)
    goal = uniform[..., None] * cumulative[..., -1:]
    index = torch.searchsorted(cumulative, goal, right=True).clamp_max(weight.shape[-1] - 1)
    mass = weight.gather(-1, index)
    left = (goal - (cumulative.gather(-1, index) - mass)) / mass.clamp_min(torch.finfo(torch.float64).tiny)
    return index[..., 0], left[..., 0].clamp(0.0, 1.0 - 1e-12)


def filtered(logits_nbV: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Logits after temperature, then top_k (ties kept), then top_p (the token that crosses it kept); -inf = not to be drawn."""
    if temperature != 1.0:
        logits_nbV = logits_nbV / temperature
    if 0 < top_k < logits_nbV.shape[-1]:
        kth = logits_nbV.topk(top_k, dim=-1).values[..., -1:]
        logits_nbV = logits_nbV.masked_fill(logits_nbV < kth, -math.inf)
    if top_p < 1.0:
        ordered, order = logits_nbV.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(-1)
        drop = probability.cumsum(-1) - probability >= top_p
        logits_nbV = logits_nbV.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), -math.inf)
    return logits_nbV


def propose(
    logits_nbV: Tensor, key_n: Tensor, position_nb: Tensor, step_n: Tensor, mask_id: int, choices: Choices
) -> Proposal:
    """A candidate token for each position. The mask id is never drawn but stays in the softmax of `logp`.

    logits_nbV is float32 and is overwritten.
    """
    peak = logits_nbV.amax(-1, keepdim=True)
    weight_nbV = (logits_nbV - peak).exp_()
    total = weight_nbV.sum(-1)
    lse = peak[..., 0] + total.log()
    entropy = None
    if choices.target == "neg_entropy" or choices.strategy == "entropy_bounded":
        entropy = lse - (weight_nbV * logits_nbV).sum(-1) / total
    margin = None
    if choices.target == "margin_confidence":
        two = weight_nbV.topk(2, dim=-1).values / total[..., None]
        margin = two[..., 0] - two[..., 1]
    logits_nbV[..., mask_id] = -math.inf
    drawn_logp = None
    if choices.greedy:
        token = logits_nbV.argmax(-1)
    else:
        plain = choices.temperature == 1.0 and choices.top_k == 0 and choices.top_p == 1.0
        if plain:
            weight_nbV[..., mask_id] = 0.0
        else:
            weight_nbV = filtered(logits_nbV, choices.temperature, choices.top_k, choices.top_p).softmax(-1)
        token = draw(weight_nbV, hash_uniform(choices.seed, key_n, position_nb, step_n, _TOKEN_STREAM))
        if choices.confidence == "tempered":
            drawn_logp = weight_nbV.gather(-1, token[..., None])[..., 0].log() - weight_nbV.sum(-1).log()
    logp = logits_nbV.gather(-1, token[..., None])[..., 0] - lse
    if choices.target == "random":
        score = hash_uniform(choices.seed, key_n, position_nb, step_n, _ORDER_STREAM).float()
    elif choices.target == "confidence":
        score = (logp if drawn_logp is None else drawn_logp).exp()
    else:
        score = margin if margin is not None else -entropy  # type: ignore[operator]
    if choices.pad_target_penalty != 1.0 and choices.pad_id is not None:
        penalised = torch.where(score < 0, score * choices.pad_target_penalty, score / choices.pad_target_penalty)
        score = torch.where(token == choices.pad_id, penalised, score)
    return Proposal(token, logp, score, entropy)


TARGETS = ("confidence", "margin_confidence", "neg_entropy", "random")


def best(score_nb: Tensor, masked_nb: Tensor, k_n: Tensor) -> Tensor:
    """The k highest scores among the masked positions, ties to the left; all of them where fewer are masked."""
    order = score_nb.masked_fill(~masked_nb, -math.inf).argsort(dim=-1, descending=True, stable=True)
    return (order.argsort(dim=-1) < k_n[:, None]) & masked_nb


def low_confidence_static(proposal: Proposal, masked_nb: Tensor, k_n: Tensor, choices: Choices) -> Tensor:
    """The k best by score."""
    return best(proposal.score, masked_nb, k_n)


def low_confidence_dynamic(proposal: Proposal, masked_nb: Tensor, k_n: Tensor, choices: Choices) -> Tensor:
    """All with score > threshold if they are at least k, else the k best (SDAR's and TraDo's rule)."""
    passed = masked_nb & (proposal.score > choices.threshold)
    enough = passed.sum(-1) >= torch.minimum(k_n, masked_nb.sum(-1))
    return torch.where(enough[:, None], passed, best(proposal.score, masked_nb, k_n))


def sequential(proposal: Proposal, masked_nb: Tensor, k_n: Tensor, choices: Choices) -> Tensor:
    """The k leftmost."""
    return masked_nb & (masked_nb.cumsum(-1) <= k_n[:, None])


def entropy_bounded(proposal: Proposal, masked_nb: Tensor, k_n: Tensor, choices: Choices) -> Tensor:
    """The surest positions while their entropies sum to less than the bound, at least one.

    Ben-Hamu et al. 2025 (arXiv:2505.24857), with dLLM-RL's cut: searchsorted of the bound in the cumulative sum.
    """
    assert proposal.entropy is not None
    entropy = proposal.entropy.masked_fill(~masked_nb, math.inf)
    k = (entropy.sort(dim=-1).values.cumsum(-1) < choices.entropy_bound).sum(-1).clamp_min(1)
    return best(-entropy, masked_nb, k)


Strategy = Callable[[Proposal, Tensor, Tensor, Choices], Tensor]
STRATEGIES: dict[str, Strategy] = {
    "low_confidence_static": low_confidence_static,
    "low_confidence_dynamic": low_confidence_dynamic,
    "sequential": sequential,
    "entropy_bounded": entropy_bounded,
}
