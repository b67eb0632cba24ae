"""Objectives of single tokens: PPO's clip, REINFORCE, distillation from a teacher.

Shapes: N trained tokens.
"""

import torch
from torch import Tensor

from train.algorithm.objectives.base import Metrics, ObjectiveParams, TokenBatch, log_ratio_of, objective
from train.algorithm.objectives.penalties import PENALTIES, PolicyTerm, with_penalties

CLIP = ("eps", "eps_low", "eps_high", "dual_clip")
"""Keys of the training section that `clipped` reads."""


def range_of(params: ObjectiveParams) -> tuple[float, float]:
    """eps_low and eps_high, each training.eps where it is null; apart as in DAPO (arXiv:2503.14476)."""
    low, high = (params["eps"] if params[name] is None else params[name] for name in ("eps_low", "eps_high"))
    return low, high


def clipped(ratio_N: Tensor, advantage_N: Tensor, params: ObjectiveParams) -> tuple[Tensor, Tensor]:
    """min(r A, clip(r, 1 - eps_low, 1 + eps_high) A), and where the bound is the smaller (bool [N]).

    eps_low, eps_high: `range_of`. dual_clip = c also bounds it from below where A < 0, by c A (arXiv:1912.09729).
    """
    low, high = range_of(params)
    free_N = ratio_N * advantage_N
    bounded_N = ratio_N.clamp(1.0 - low, 1.0 + high) * advantage_N
    surrogate_N, is_clipped_N = torch.minimum(free_N, bounded_N), free_N > bounded_N
    if params["dual_clip"] is None:
        return surrogate_N, is_clipped_N
    floor_N = params["dual_clip"] * advantage_N
    below_N = (advantage_N < 0) & (surrogate_N < floor_N)
    return torch.where(below_N, floor_N, surrogate_N), is_clipped_N | below_N


@objective(training=(*CLIP, *PENALTIES))
def clipped_surrogate(batch: TokenBatch, params: ObjectiveParams) -> tuple[Tensor, Metrics]:
    """TraceRL's objective over tokens replayed at their own denoising step (arXiv:2509.06949), PPO's clip
    (arXiv:1707.06347):

        surrogate_j = min(r_j A_j, clip(r_j, 1 - eps_low, 1 + eps_high) A_j),    r_j = exp(logp_j - logp_old_j)

    With method=mean_field it is diffu-GRPO (d1, arXiv:2504.12216), with method=coupled coupled-GRPO (arXiv:2506.20639).
    Log-ratios are clamped to +-10 so that exp stays finite. Loss and metrics: `with_penalties`.
    """
    ratio_N = log_ratio_of(batch.logp, batch.logp_old).exp()
    surrogate_N, is_clipped_N = clipped(ratio_N, batch.advantage, params)
    return with_penalties(batch, params, PolicyTerm(surrogate_N, ratio_N, is_clipped_N))


@objective(training=PENALTIES)
def reinforce(batch: TokenBatch, params: ObjectiveParams) -> tuple[Tensor, Metrics]:
    """The plain policy gradient (Williams 1992): no ratio, no clip, right for the first update of a step alone:

        surrogate_j = A_j logp_j

    With advantage=wd1 it is wd1 (arXiv:2507.08838). Loss and metrics: `with_penalties`.
    """
    ratio_N = log_ratio_of(batch.logp, batch.logp_old).exp()
    return with_penalties(batch, params, PolicyTerm(batch.advantage * batch.logp, ratio_N))


@objective(teacher=True, training=(*CLIP, *PENALTIES))
def distill(batch: TokenBatch, params: ObjectiveParams) -> tuple[Tensor, Metrics]:
    """On-policy distillation (GKD, arXiv:2306.13649): the reverse KL of each token's distribution to a teacher's, in
    the states that the policy went through itself, estimated by the token that it drew (MiniLLM, arXiv:2306.08543):

        surrogate_j = min(r_j a_j, clip(r_j, 1 - eps_low, 1 + eps_high) a_j),    r_j = exp(logp_j - logp_old_j)
        a_j = log p_teacher(j) - logp_old_j

    Of a token drawn from p the gradient's expectation is that of - KL(p || p_teacher), as E[grad log p] is 0. Tokens
    that were committed because they were sure are no plain draws: they count for more than their share. The reward is
    not read. Loss and metrics (kl: to the teacher): `with_penalties`.
    """
    assert batch.logp_reference is not None
    ratio_N = log_ratio_of(batch.logp, batch.logp_old).exp()
    gain_N = log_ratio_of(batch.logp_reference, batch.logp_old)
    surrogate_N, is_clipped_N = clipped(ratio_N, gain_N, params)
    return with_penalties(batch, params, PolicyTerm(surrogate_N, ratio_N, is_clipped_N))
