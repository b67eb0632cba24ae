"""Objectives of whole responses or of their masked copies: one ratio, one move or one bound each.

Shapes: N trained tokens. l: a response's log-likelihood, sum_j share_j logp_j, exact over the trace under TraceRL, a
bound under the random methods; L: its length, sum_j share_j (under elbo the mean of that is the length). A value of a
response stands at each of its tokens [N], and its weight in the loss is the sum of theirs.
"""

from math import inf, log

import torch
from torch import Tensor

from train.algorithm.objectives.base import (
    MAX_LOG_RATIO,
    Metrics,
    ObjectiveParams,
    TokenBatch,
    log_ratio_of,
    objective,
    of_response,
    sum_by,
)
from train.algorithm.objectives.clip import CLIP, clipped, range_of
from train.algorithm.objectives.penalties import PENALTIES, PolicyTerm, with_penalties

_SMALLEST_LOG_WEIGHT = -80.0
_TINY = 1e-6


def _length(batch: TokenBatch) -> Tensor:
    return of_response(batch, torch.ones_like(batch.share)).clamp(min=_TINY)


def _move(batch: TokenBatch) -> Tensor:
    """l - l_old of each token's response, not clamped."""
    return of_response(batch, batch.logp - batch.logp_old)


def _ratio(log_ratio_N: Tensor) -> Tensor:
    return log_ratio_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


@objective(whole_responses=True, one_advantage=True, training=(*CLIP, *PENALTIES))
def gspo(batch: TokenBatch, params: ObjectiveParams) -> tuple[Tensor, Metrics]:
    """GSPO (arXiv:2507.18071): the clip over the geometric mean of a response's token ratios:

        surrogate_i = min(s_i A_i, clip(s_i, 1 - eps_low, 1 + eps_high) A_i),    s_i = exp((l_i - l_old_i) / L_i)

    The paper's clip is narrow: eps_low 3e-4, eps_high 4e-4. Loss and metrics: `with_penalties`.
    """
    ratio_N = _ratio(_move(batch) / _length(batch))
    surrogate_N, is_clipped_N = clipped(ratio_N, batch.advantage, params)
    return with_penalties(batch, params, PolicyTerm(surrogate_N, ratio_N, is_clipped_N))


@objective(whole_responses=True, one_advantage=True, training=(*CLIP, "beta", "nll_weight"))
def espo(batch: TokenBatch, params: ObjectiveParams) -> tuple[Tensor, Metrics]:
    """ESPO (arXiv:2512.03759): GSPO's ratio of two likelihood bounds (method=elbo), and the KL k2 of whole responses:

        surrogate_i = min(s_i A_i, clip(s_i, 1 - eps_low, 1 + eps_high) A_i),    s_i = exp((l_i - l_old_i) / L_i)
        KL_i = (l_i - l_ref_i)^2 / (2 L_i)

    l_ref: of the reference, None = the old policy. The authors' clip is eps 4e-4. Loss and metrics: `with_penalties`.
    """
    length_N, move_N = _length(batch), _move(batch)
    ratio_N = _ratio(move_N / length_N)
    surrogate_N, is_clipped_N = clipped(ratio_N, batch.advantage, params)
    gap_N = move_N if batch.logp_reference is None else of_response(batch, batch.logp - batch.logp_reference)
    kl_N = gap_N**2 / (2.0 * length_N)
    return with_penalties(batch, params, PolicyTerm(surrogate_N, ratio_N, is_clipped_N, kl_N))


@objective(whole_responses=True, one_advantage=True, training=(*CLIP, *PENALTIES))
def ebpo(batch: TokenBatch, params: ObjectiveParams) -> tuple[Tensor, Metrics]:
    """EBPO (LLaDA2.1 report, arXiv:2602.08676, eq. 4 and 5): the clip over the ratio of whole block-wise likelihood
    bounds, not divided by the length:

        surrogate_i = min(rho_i A_i, clip(rho_i, 1 - eps_low, 1 + eps_high) A_i) / L_i,    rho_i = exp(l_i - l_old_i)

    For method=elbo on a block family. Divided by L_i because a response's weight is the sum of its tokens': on policy
    the gradient is then that of `clip`. Loss and metrics: `with_penalties`.
    """
    ratio_N = _ratio(_move(batch))
    surrogate_N, is_clipped_N = clipped(ratio_N, batch.advantage, params)
    return with_penalties(batch, params, PolicyTerm(surrogate_N / _length(batch), ratio_N, is_clipped_N))


@objective(whole_copies=True, training=(*CLIP, *PENALTIES))
def bgpo(batch: TokenBatch, params: ObjectiveParams) -> tuple[Tensor, Metrics]:
    """BGPO (arXiv:2510.11683): the clip over a lower bound of r A that is a sum over Monte-Carlo masks, so that each
    masked copy k of a response can be its own micro-batch:

        surrogate_k = min(g_k A, clip(g_k, 1 - eps_low, 1 + eps_high) A)
        g_k = 1 + d_k where A >= 0 (exp(d) >= 1 + d),  exp(d_k) where A < 0 (Jensen over the copies)
        d_k = sum_{j in k} share_j (logp_j - logp_old_j) / L_k,    L_k = sum_{j in k} share_j

    For method=elbo. The authors divide by the response's length, which is the mean of L_k over masks. On policy the
    gradient is that of `clip`. Loss and metrics: `with_penalties`.
    """
    length_N = _of_copy(batch, torch.ones_like(batch.share)).clamp(min=_TINY)
    move_N = (_of_copy(batch, batch.logp - batch.logp_old) / length_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    bound_N = torch.where(batch.advantage >= 0, 1.0 + move_N, move_N.exp())
    surrogate_N, is_clipped_N = clipped(bound_N, batch.advantage, params)
    return with_penalties(batch, params, PolicyTerm(surrogate_N, bound_N, is_clipped_N))


def _of_copy(batch: TokenBatch, value_N: Tensor) -> Tensor:
    """As `of_response`, over the tokens of each one's masked copy: those of its response and `round`."""
    return sum_by(_numbered(batch.response, batch.round), batch.share * value_N)


def _numbered(one_N: Tensor, other_N: Tensor) -> Tensor:
    """Numbers of the pairs that two numbers of each token make."""
    return torch.unique(torch.stack([one_N, other_N]), dim=1, return_inverse=True)[1]


@objective(
    whole_responses=True,
    one_advantage=True,
    training=("eps", "eps_low", "eps_high", *PENALTIES),
    defaults={"psi": 1.0},
    ranges={"psi": (_TINY, inf)},
)
def gdsd(batch: TokenBatch, params: ObjectiveParams) -> tuple[Tensor, Metrics]:
    """GDSD (arXiv:2605.29398): regression of the policy's move on the advantage, whose gradient is zero where the
    target is reached:

        surrogate_i = - (m_i / L_i - psi A_i)^2,    m_i = clip(l_i - l_old_i, log(1 - eps_low), log(1 + eps_high))

    eps_low, eps_high: `range_of`. Loss and metrics (clipped: the move is beyond them): `with_penalties`.
    """
    move_N = _move(batch)
    eps_low, eps_high = range_of(params)
    low, high = log(max(1.0 - eps_low, _TINY)), log(1.0 + eps_high)
    bounded_N = move_N.clamp(low, high)
    surrogate_N = -((bounded_N / _length(batch) - params["psi"] * batch.advantage) ** 2)
    is_clipped_N = (move_N < low) | (move_N > high)
    return with_penalties(batch, params, PolicyTerm(surrogate_N, bounded_N.exp(), is_clipped_N))


def spg_bound(batch: TokenBatch, beta: float, mix: float) -> Tensor:
    """SPG's bounds on the log-likelihood of a token [N], whose sum times share over a response is b_i:

        A >= 0: the lower bound, logp.    A < 0: mix (1 / beta) log(sum_c share_c p_c^beta) + (1 - mix) logp

    The sum runs over the masked copies c in which the token at one place of the response is trained, beta > 1 (the
    Renyi upper bound); its value is divided by sum_c share_c, because it stands at every copy. A place that is trained
    once, with share 1, has one bound. With share s its upper bound is logp + log(s) / beta, whose gradient is 1 where
    that of the lower, s logp, is s; so in SPG's code.
    """
    number_N = _numbered(batch.response, batch.place)
    logp_N = batch.logp.detach()
    top_N = torch.full_like(logp_N, -torch.inf).scatter_reduce(0, number_N, logp_N, "amax")[number_N]
    inner_N = sum_by(number_N, batch.share * (beta * (batch.logp - top_N)).exp())
    upper_N = (top_N + inner_N.log() / beta) / sum_by(number_N, batch.share)
    return torch.where(batch.advantage < 0, mix * upper_N + (1.0 - mix) * batch.logp, batch.logp)


_SPG = {"eubo_beta": 1.5, "mix": 0.5}
_SPG_RANGES = {"eubo_beta": (1.0, inf), "mix": (0.0, 1.0)}


@objective(whole_responses=True, training=PENALTIES, defaults=_SPG, ranges=_SPG_RANGES)
def spg(batch: TokenBatch, params: ObjectiveParams) -> tuple[Tensor, Metrics]:
    """SPG (arXiv:2510.09541): the policy gradient of a lower bound of good responses' likelihood and of an upper bound
    of bad ones':

        surrogate_j = A_j b_j,    b: `spg_bound` at eubo_beta and mix

    For method=elbo with several masks. No ratio: right for the first update of a step alone. Loss and metrics:
    `with_penalties`.
    """
    bound_N = spg_bound(batch, params["eubo_beta"], params["mix"])
    ratio_N = log_ratio_of(batch.logp, batch.logp_old).exp()
    return with_penalties(batch, params, PolicyTerm(batch.advantage * bound_N, ratio_N))


def group_shares(batch: TokenBatch, params: ObjectiveParams) -> dict[str, Tensor]:
    """StableDRL's weight of each token's response in its group: G softmax over the group of min(l - l_old, log limit),
    which is 1 on policy."""
    assert batch.group is not None
    tokens_N = sum_by(batch.response, torch.ones_like(batch.share))
    move_N = _move(batch).clamp(_SMALLEST_LOG_WEIGHT, log(params["limit"]))
    responses_N, total_N = (sum_by(batch.group, x / tokens_N) for x in (torch.ones_like(move_N), move_N.exp()))
    return {"share": responses_N * move_N.exp() / total_N}


@objective(
    whole_responses=True,
    one_advantage=True,
    sums=group_shares,
    training=PENALTIES,
    defaults={"limit": 5.0, **_SPG},
    ranges={"limit": (1.0, inf), **_SPG_RANGES},
)
def stable_drl(batch: TokenBatch, params: ObjectiveParams) -> tuple[Tensor, Metrics]:
    """StableDRL (arXiv:2603.06743): SPG under importance weights that are clipped at `limit` and normalised in the
    group, so that one noisy ratio cannot explode:

        surrogate_j = G w_i A_j b_j,    w_i = softmax_i(min(l_i - l_old_i, log limit)), without gradient

    b: `spg_bound`. The authors' code has l / L in the weights, the log of a geometric mean: one limit clips it later.
    Loss and metrics (ratio: G w_i; clipped: the move is beyond the limit): `with_penalties`.
    """
    assert batch.sums is not None
    share_N = batch.sums["share"]
    bound_N = spg_bound(batch, params["eubo_beta"], params["mix"])
    is_clipped_N = _move(batch).detach() > log(params["limit"])
    return with_penalties(batch, params, PolicyTerm(share_N * batch.advantage * bound_N, share_N, is_clipped_N))
