"""What is minimised: pure functions of the trained tokens' log-probabilities.

Shapes: N trained tokens of one micro-batch. `weight_N` carries the normalisation (0 = untrained), so a loss is a
plain sum and any split into micro-batches or ranks adds up to the same update.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.algorithm.replay import MicroBatch, TrainingSample

Metrics = dict[str, Tensor]
_MAX_LOG_RATIO = 10.0


def k1(log_ratio: Tensor) -> Tensor:
    """k1 = d, with d = logp - logp_ref (Schulman 2020, "Approximating KL divergence")."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """k2 = d^2 / 2, with d = logp - logp_ref (ibid.)."""
    return 0.5 * log_ratio**2


def k3(log_ratio: Tensor) -> Tensor:
    """k3 = exp(-d) - 1 + d, with d = logp - logp_ref (ibid.): unbiased and never negative."""
    return torch.exp(-log_ratio) - 1.0 + log_ratio


KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def clipped_surrogate(
    logp_N: Tensor,
    logp_old_N: Tensor,
    advantage_N: Tensor,
    weight_N: Tensor,
    *,
    eps: float,
    beta: float = 0.0,
    kl: str = "k3",
    logp_reference_N: Tensor | None = None,
    kl_weight_N: Tensor | None = None,
    correction_N: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """TraceRL's objective over tokens replayed at their own denoising step (arXiv:2509.06949), PPO's clip
    (arXiv:1707.06347):

        loss = - sum_j w_j c_j min(r_j A_j, clip(r_j, 1 - eps, 1 + eps) A_j) + beta sum_j w_j KL_j
        r = exp(logp - logp_old)

    Log-ratios are clamped to +-10 so that exp stays finite. The KL is to logp_reference_N (a frozen model's), None =
    to logp_old_N. kl_weight_N: another normalisation for the KL term. correction_N: c, see `rollout_correction`.
    Returns the loss and sums over the N tokens: tokens, clipped, ratio, kl, kl_loss, policy_loss.
    """
    log_ratio = _log_ratio(logp_N, logp_old_N)
    ratio = log_ratio.exp()
    surrogate = torch.minimum(ratio * advantage_N, ratio.clamp(1.0 - eps, 1.0 + eps) * advantage_N)
    policy_loss = -(weight_N * surrogate * (1.0 if correction_N is None else correction_N)).sum()
    kl_N = KL_ESTIMATORS[kl](log_ratio if logp_reference_N is None else _log_ratio(logp_N, logp_reference_N))
    kl_loss = ((weight_N if kl_weight_N is None else kl_weight_N) * kl_N).sum()
    trained = weight_N > 0
    with torch.no_grad():
        clipped = trained & (ratio * advantage_N > ratio.clamp(1.0 - eps, 1.0 + eps) * advantage_N)
        metrics = {
            "tokens": trained.sum(),
            "clipped": clipped.sum(),
            "ratio": (ratio * trained).sum(),
            "kl": (kl_N * trained).sum(),
            "policy_loss": policy_loss.detach(),
            "kl_loss": kl_loss.detach(),
        }
    return policy_loss + beta * kl_loss, metrics


def _log_ratio(logp_N: Tensor, other_N: Tensor) -> Tensor:
    return (logp_N - other_N).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)


def truncated(ratio_N: Tensor, limit: float) -> Tensor:
    """c = min(r, limit): truncated importance sampling (Ionides 2008)."""
    return ratio_N.clamp(max=limit)


def masked(ratio_N: Tensor, limit: float) -> Tensor:
    """c = r where 1 / limit <= r <= limit, else 0: tokens on which sampler and trainer disagree are left out."""
    return torch.where((ratio_N >= 1.0 / limit) & (ratio_N <= limit), ratio_N, 0.0)


CORRECTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {"truncated": truncated, "masked": masked}


def rollout_correction(kind: str, logp_old_N: Tensor, logp_rollout_N: Tensor, limit: float) -> Tensor | None:
    """Importance weights c [N] of tokens that the sampler drew from other numerics (an approximate cache, another
    precision) than the trainer's old policy, from r = exp(logp_old - logp_rollout); None for "none"."""
    if kind == "none":
        return None
    return CORRECTIONS[kind](_log_ratio(logp_old_N, logp_rollout_N).exp(), limit)


def clipped_value_loss(
    value_N: Tensor, value_old_N: Tensor, return_N: Tensor, weight_N: Tensor, *, eps: float
) -> tuple[Tensor, Metrics]:
    """The squared error of a value model that moves at most eps from its old values (arXiv:2005.12729, TraceRL
    arXiv:2509.06949):

        loss = sum_j w_j 1/2 max((v_j - R_j)^2, (clip(v_j, v_old_j - eps, v_old_j + eps) - R_j)^2)

    Returns the loss and sums over the N tokens: tokens, clipped (the clip decides the maximum).
    """
    error = (value_N - return_N) ** 2
    held = (torch.clamp(value_N, value_old_N - eps, value_old_N + eps) - return_N) ** 2
    trained = weight_N > 0
    metrics = {"tokens": trained.sum(), "clipped": (trained & (held > error)).sum()}
    return 0.5 * (weight_N * torch.maximum(error, held)).sum(), metrics


def negative_log_likelihood(logp_N: Tensor, weight_N: Tensor) -> tuple[Tensor, Metrics]:
    """SFT: loss = - sum_j w_j logp_j over masked tokens. Returns the loss and sums: tokens, nll."""
    trained = weight_N > 0
    metrics = {"tokens": trained.sum(), "nll": -(logp_N.detach() * trained).sum()}
    return -(weight_N * logp_N).sum(), metrics


@dataclass(frozen=True)
class Weights:
    """Weights [N] of each row's trained tokens in the policy's (or SFT's) loss, and in the KL term."""

    policy: list[NDArray[np.float64]]
    kl: list[NDArray[np.float64]]


def per_token(
    values: Sequence[float | NDArray[np.floating]] | Mapping[int, float | NDArray[np.floating]],
    micro: MicroBatch,
    device: torch.device,
) -> Tensor:
    """values[i] of each row i of the micro-batch, one number or one a trained token, as [N] in fp32."""
    tokens = np.bincount(micro.row_of_N, minlength=len(micro.rows))
    spread = [
        np.broadcast_to(np.asarray(values[i], np.float32), count) for i, count in zip(micro.rows, tokens, strict=True)
    ]
    return torch.from_numpy(np.concatenate(spread)).to(device)


def token_weights(
    rows: Sequence[TrainingSample], kind: str, *, max_gen_length: int, longest_response: int | None = None
) -> Weights:
    """Weights in an update made of `rows`, which are whole responses.

    constant: mean over responses of (sum over tokens / max_gen_length). token_mean: sum / trained tokens of the update.
    reference: dLLM-RL's, which depends on batch mates. With longest_response (block families): mean over its rows (one
    a round) of (sum / longest response of the step). Without (full attention): mean over rows of the row's mean, and
    for the KL of its sum.
    """
    rounds = sum(row.num_rounds for row in rows)
    if kind == "constant":
        scale = 1.0 / (len({row.key for row in rows}) * max_gen_length)
    elif kind == "token_mean":
        scale = 1.0 / max(1.0, sum(float(row.weight.sum()) for row in rows))
    elif kind == "reference":
        scale = 1.0 / rounds if longest_response is None else 1.0 / (rounds * longest_response)
    else:
        raise ValueError(f"training.normalization is {kind!r}; choose from constant, token_mean, reference.")
    plain = [scale * row.weight for row in rows]
    if kind == "reference" and longest_response is None:
        return Weights([weight / len(weight) for weight in plain], plain)
    return Weights(plain, plain)
