"""What is minimised: pure functions of the trained tokens' log-probabilities.

Shapes: N trained tokens of one micro-batch. `weight_N` carries the normalisation (0 = untrained), so a loss is a
plain sum and any split into micro-batches or ranks adds up to the same update.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.replay import Row

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
    kl_weight_N: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """TraceRL's objective over tokens replayed at their own denoising step (arXiv:2509.06949), PPO's clip
    (arXiv:1707.06347):

        loss = - sum_j w_j min(r_j A_j, clip(r_j, 1 - eps, 1 + eps) A_j) + beta sum_j w_j KL_j,    r = exp(logp -
        logp_old)

    The log-ratio is clamped to +-10 so that exp stays finite. kl_weight_N: another normalisation for the KL term.
    Returns the loss and sums over the N tokens: tokens, clipped, ratio, kl, kl_loss, policy_loss.
    """
    log_ratio = (logp_N - logp_old_N).clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    surrogate = torch.minimum(ratio * advantage_N, ratio.clamp(1.0 - eps, 1.0 + eps) * advantage_N)
    policy_loss = -(weight_N * surrogate).sum()
    kl_N = KL_ESTIMATORS[kl](log_ratio)
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


def negative_log_likelihood(logp_N: Tensor, weight_N: Tensor) -> tuple[Tensor, Metrics]:
    """SFT: loss = - sum_j w_j logp_j over masked tokens. Returns the loss and sums: tokens, nll."""
    trained = weight_N > 0
    metrics = {"tokens": trained.sum(), "nll": -(logp_N.detach() * trained).sum()}
    return -(weight_N * logp_N).sum(), metrics


def token_weights(
    rows: Sequence[Row], kind: str, *, max_gen_length: int, longest_response: int | None = None
) -> NDArray[np.float64]:
    """The weight of each row's tokens [rows] in an update made of `rows`.

    constant: mean over responses of (sum over tokens / max_gen_length). token_mean: sum / trained tokens of the update.
    reference: dLLM-RL's, mean over its rows (one a round) of (sum / longest response of the step), which depends on
    batch mates.
    """
    if kind == "constant":
        weight = 1.0 / (len(rows) * max_gen_length)
    elif kind == "token_mean":
        weight = 1.0 / max(1, sum(row.num_trained for row in rows))
    elif kind == "reference":
        length = longest_response if longest_response is not None else max_gen_length
        weight = 1.0 / (sum(row.num_rounds for row in rows) * length)
    else:
        raise ValueError(f"training.normalization is {kind!r}; choose from constant, token_mean, reference.")
    return np.full(len(rows), weight)
