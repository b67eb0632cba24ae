"""Rollout correction: tokens that the sampler drew from other numerics (an approximate cache, another precision) than
the trainer's old policy. Weights and rejection are apart, each of tokens or of whole responses, as in verl and SkyRL.

Shapes: N trained tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from configs.schema import TrainingConfig
from runtime.doors import choose
from train.algorithm.objectives.base import MAX_LOG_RATIO, Metrics, TokenBatch, log_ratio_of, of_response


def token(batch: TokenBatch) -> Tensor:
    """r_j = exp(logp_old_j - logp_rollout_j)."""
    return log_ratio_of(batch.logp_old, batch.logp_rollout).exp()


def sequence(batch: TokenBatch) -> Tensor:
    """r_i = exp(sum_j share_j (logp_old_j - logp_rollout_j)), at every token of response i: unbiased, of large
    variance."""
    return of_response(batch, batch.logp_old - batch.logp_rollout).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def geometric(batch: TokenBatch) -> Tensor:
    """The geometric mean of a response's r_j, at every token of it."""
    length_N = of_response(batch, torch.ones_like(batch.share))
    mean_N = of_response(batch, batch.logp_old - batch.logp_rollout) / length_N
    return mean_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


LEVELS: dict[str, Callable[[TokenBatch], Tensor]] = {"token": token, "sequence": sequence, "geometric": geometric}


def truncated(ratio_N: Tensor, limit: float) -> Tensor:
    """c = min(r, limit): truncated importance sampling (Ionides 2008)."""
    return ratio_N.clamp(max=limit)


def masked(ratio_N: Tensor, limit: float) -> Tensor:
    """c = r where 1 / limit <= r <= limit, else 0: tokens on which sampler and trainer disagree are left out."""
    return torch.where((ratio_N >= 1.0 / limit) & (ratio_N <= limit), ratio_N, 0.0)


CORRECTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {"truncated": truncated, "masked": masked}


@dataclass(frozen=True)
class Correction:
    """training.rollout_correction* and training.rollout_rejection*.

    weights: "none", "truncated" or "masked" importance weights at `level`, up to `limit`. rejection: "none", or the
    level at which tokens (or whole responses) with a ratio outside `bounds` are left out.
    """

    weights: str = "none"
    level: str = "token"
    limit: float = 2.0
    rejection: str = "none"
    bounds: tuple[float, float] = (0.5, 2.0)

    @staticmethod
    def of(training: TrainingConfig) -> "Correction":
        """ValueError, naming the key, for a name that there is not."""
        if training.rollout_correction != "none":
            choose("training.rollout_correction", training.rollout_correction, CORRECTIONS, "none")
        return Correction(
            training.rollout_correction,
            training.rollout_correction_level,
            training.rollout_correction_limit,
            training.rollout_rejection,
            (training.rollout_rejection_low, training.rollout_rejection_high),
        )

    @property
    def compares(self) -> bool:
        """Whether it reads the sampler's log-probabilities at all."""
        return not self.weights == self.rejection == "none"

    @property
    def whole_responses(self) -> bool:
        """Whether it needs the tokens of a response in one micro-batch."""
        levels = (self.level if self.weights != "none" else "token", self.rejection)
        return any(level in ("sequence", "geometric") for level in levels)

    def __call__(self, batch: TokenBatch) -> tuple[TokenBatch, Metrics]:
        """The batch with corrected weights: importance weights in the policy's term, 0 in all terms of what is
        rejected. Metrics are sums over trained tokens: rollout_weight, rollout_rejected, rollout_tokens."""
        if not self.compares:
            return batch, {}
        with torch.no_grad():
            weight_N, kept_N = torch.ones_like(batch.logp_old), torch.ones_like(batch.weight, dtype=torch.bool)
            if self.weights != "none":
                weight_N = CORRECTIONS[self.weights](LEVELS[self.level](batch), self.limit)
            if self.rejection != "none":
                ratio_N = LEVELS[self.rejection](batch)
                kept_N = (ratio_N >= self.bounds[0]) & (ratio_N <= self.bounds[1])
            trained = batch.weight > 0
            metrics = {
                "rollout_weight": (weight_N * trained).sum(),
                "rollout_rejected": (trained & (~kept_N | (weight_N == 0))).sum(),
                "rollout_tokens": trained.sum(),
            }
        corrected = replace(batch, weight=batch.weight * weight_N * kept_N, kl_weight=batch.kl_weight * kept_N)
        return corrected, metrics
