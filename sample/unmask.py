"""Which tokens a denoising step proposes, how sure it is of them, and which positions it commits: small batched pure
functions.

Shapes: N positions that need a candidate, n slots, b positions of a block, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from models.randomness import hash_uniform

CHUNK = 128
_TOKEN_STREAM, _ORDER_STREAM = 0, 1


class Choices(Protocol):
    """The part of SamplingConfig that a step reads."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def confidence(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def strategy(self) -> str: ...
    @property
    def threshold(self) -> float: ...
    @property
    def entropy_bound(self) -> float: ...
    @property
    def pad_id(self) -> int | None: ...
    @property
    def pad_target_penalty(self) -> float: ...
    @property
    def alg_temp(self) -> float: ...
    @property
    def greedy(self) -> bool: ...


class Proposal(NamedTuple):
    """A candidate for each position: token, its log-probability at temperature 1, its score under the target; the
    entropy (nats) where the strategy needs it, the confidence where a threshold does and the score is another."""

    token: Tensor
    logp: Tensor
    score: Tensor
    entropy: Tensor | None
    confidence: Tensor | None = None

    def spread(self, row_N: Tensor, n: int, b: int) -> "Proposal":
        """From [N] to [n, b]: entry i goes to the flat position row_N[i], the rest are 0."""

        def place(value_N: Tensor) -> Tensor:
            return value_N.new_zeros(n * b).index_copy_(0, row_N, value_N).view(n, b)

        more = (None if value is None else place(value) for value in (self.entropy, self.confidence))
        return Proposal(place(self.token), place(self.logp), place(self.score), *more)


def schedule(positions: int, steps: int) -> list[int]:
    """How many positions each of `steps` steps commits: an even share, the first steps one more (the remainder
    first)."""
    share, rest = divmod(positions, steps)
    return [share + (i < rest) for i in range(steps)]


def timestep_schedule(positions: int, steps: int) -> list[int]:
    """Dream's: the first step decides one position; step i of the others, with m left, floor(m (1 - t[i + 1] / t[i])),
    t = linspace(1, 0.001, steps + 1) in fp32; the last step all that are left.

    Steps that would decide none are left out, since they would change nothing. One step of several positions is two.
    https://github.com/DreamLM/Dream (generation_utils)
    """
    time = torch.linspace(1.0, 1e-3, steps + 1)
    plan, left = [1], positions - 1
    for i in range(1, steps - 1):
        plan.append(int(left * (1 - time[i + 1] / time[i])))
        left -= plan[-1]
    return [k for k in (*plan, left) if k > 0]


SCHEDULES: dict[str, Callable[[int, int], list[int]]] = {"even": schedule, "timesteps": timestep_schedule}


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
    if top_p < 1.0:
        if ordered is None:
            ordered = logits_NV.sort(dim=-1, descending=True).values
        probability = (ordered - logits_NV.logsumexp(-1, keepdim=True)).exp()
        kept = (probability.cumsum(-1) - probability < top_p).sum(-1, keepdim=True)
        logits_NV = logits_NV.masked_fill(logits_NV < ordered.gather(-1, kept - 1), -math.inf)
    return logits_NV


def propose(
    logits_NV: Tensor,
    key_N: Tensor,
    position_N: Tensor,
    step_N: Tensor,
    mask_id: int,
    choices: Choices,
    text_vocab_size: int | None = None,
) -> Proposal:
    """A candidate token for each position. The mask id and ids from text_vocab_size on are never drawn but stay in the
    softmax of `logp`.

    logits_NV is float32 and is overwritten.
    """
    weight_NV = logits_NV.softmax(-1)
    lse = logits_NV.amax(-1) - weight_NV.amax(-1).log()
    entropy = margin = drawn_logp = None
    if choices.target == "neg_entropy" or choices.strategy == "entropy_bounded":
        entropy = lse - (weight_NV * logits_NV).sum(-1)
    if choices.target == "margin_confidence":
        two = weight_NV.topk(2, dim=-1).values
        margin = two[:, 0] - two[:, 1]
    _forbid(logits_NV, mask_id, text_vocab_size, -math.inf)
    if choices.greedy:
        token = argmax(logits_NV)
    else:
        if choices.temperature == 1.0 and choices.top_k == 0 and choices.top_p == 1.0:
            _forbid(weight_NV, mask_id, text_vocab_size, 0.0)
        else:
            weight_NV = filtered(logits_NV, choices.temperature, choices.top_k, choices.top_p).softmax(-1)
        token = draw(weight_NV, hash_uniform(key_N, position_N, step_N, _TOKEN_STREAM))
        if choices.confidence == "tempered":
            drawn_logp = _at(weight_NV, token).log() - weight_NV.sum(-1).log()
    logp = _at(logits_NV, token) - lse
    score = passing = (logp if drawn_logp is None else drawn_logp).exp()
    if choices.target == "random":
        score = hash_uniform(key_N, position_N, step_N, _ORDER_STREAM).float()
    elif choices.target == "neg_entropy":
        score = -entropy  # type: ignore[operator]
    elif margin is not None:
        score = passing = margin
    if choices.pad_target_penalty != 1.0 and choices.pad_id is not None:
        is_pad = token == choices.pad_id
        score, passing = (_penalised(value, is_pad, choices.pad_target_penalty) for value in (score, passing))
    if choices.alg_temp > 0.0 and choices.strategy == "low_confidence_static":
        uniform = hash_uniform(key_N, position_N, step_N, _ORDER_STREAM).clamp_min(2.0**-53)
        score = score / choices.alg_temp - (-uniform.log()).log().float()
    rank_only = choices.strategy == "low_confidence_dynamic" and choices.target in ("random", "neg_entropy")
    return Proposal(token, logp, score, entropy, passing if rank_only else None)


def _penalised(score_N: Tensor, is_pad_N: Tensor, penalty: float) -> Tensor:
    return torch.where(is_pad_N, torch.where(score_N < 0, score_N * penalty, score_N / penalty), score_N)


def _forbid(value_NV: Tensor, mask_id: int, text_vocab_size: int | None, fill: float) -> None:
    value_NV[:, mask_id] = fill
    if text_vocab_size is not None:
        value_NV[:, text_vocab_size:] = fill


def _at(value_NV: Tensor, token_N: Tensor) -> Tensor:
    return value_NV.gather(-1, token_N[:, None])[:, 0]


TARGETS = ("confidence", "margin_confidence", "neg_entropy", "random")
DREAM_TARGETS = {
    "maskgit_plus": "confidence",
    "topk_margin": "margin_confidence",
    "entropy": "neg_entropy",
    "origin": "random",
}


def best(score_nb: Tensor, masked_nb: Tensor, k_n: Tensor) -> Tensor:
    """The k highest scores among the masked positions, ties to the left; all of them where fewer are masked."""
    order = score_nb.masked_fill(~masked_nb, -math.inf).argsort(dim=-1, descending=True, stable=True)
    return (order.argsort(dim=-1) < k_n[:, None]) & masked_nb


def low_confidence_static(proposal: Proposal, masked_nb: Tensor, k_n: Tensor, choices: Choices) -> Tensor:
    """The k best by score."""
    return best(proposal.score, masked_nb, k_n)


def low_confidence_dynamic(proposal: Proposal, masked_nb: Tensor, k_n: Tensor, choices: Choices) -> Tensor:
    """All that pass the threshold (confidence or margin > it) if they are at least k, else the k best by score.

    SDAR's and TraDo's rule. Of the other targets, which are no probabilities, the confidence is compared.
    """
    return _passed_or_best(proposal, masked_nb, k_n, masked_nb & (_passing(proposal) > choices.threshold))


def low_confidence_dynamic_or_equal(proposal: Proposal, masked_nb: Tensor, k_n: Tensor, choices: Choices) -> Tensor:
    """The same with >= threshold: LLaDA's and Dream's rule, where k = 1."""
    return _passed_or_best(proposal, masked_nb, k_n, masked_nb & (_passing(proposal) >= choices.threshold))


def _passing(proposal: Proposal) -> Tensor:
    return proposal.score if proposal.confidence is None else proposal.confidence


def _passed_or_best(proposal: Proposal, masked_nb: Tensor, k_n: Tensor, passed: Tensor) -> Tensor:
    enough = passed.sum(-1) >= k_n
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


def strategy_of(name: str, threshold_passes: bool) -> Strategy:
    """The strategy of a name, under a family's reading of the threshold."""
    if name == "low_confidence_dynamic" and threshold_passes:
        return low_confidence_dynamic_or_equal
    return STRATEGIES[name]
