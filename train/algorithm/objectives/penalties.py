"""What every built-in objective adds to its policy loss, and the metrics that all of them report.

Shapes: N trained tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.doors import choose
from train.algorithm.objectives.base import Metrics, ObjectiveParams, TokenBatch, log_ratio_of

PENALTIES = ("beta", "kl_estimator", "nll_weight")
"""Keys of the training section that `with_penalties` reads."""


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


@dataclass(frozen=True)
class PolicyTerm:
    """An objective's own term. surrogate_N: what is maximised at each token, before the weights. ratio_N: the policy's
    move that it is made of; clipped_N: whether the clip took its gradient. kl_N: its own KL at each token; None = the
    estimator's, of the token's log-probability."""

    surrogate_N: Tensor
    ratio_N: Tensor
    clipped_N: Tensor | None = None
    kl_N: Tensor | None = None


def with_penalties(batch: TokenBatch, params: ObjectiveParams, term: PolicyTerm) -> tuple[Tensor, Metrics]:
    """The loss and metrics of a policy term with penalties:

        loss = - sum_j w_j surrogate_j + beta sum_j v_j KL_j - alpha sum_j w_j [reward_j > 0] logp_j

    w, v: weight and kl_weight. The KL (training.kl_estimator) is to logp_reference, None = to logp_old. alpha,
    training.nll_weight: of the likelihood of right traces (LightningRL, arXiv:2603.13319). Metrics are sums over
    trained tokens: tokens, ratio, clipped, kl, policy_loss, kl_loss, and nll of those of right traces.
    """
    policy_loss = -(batch.weight * term.surrogate_N).sum()
    kl_N = term.kl_N
    if kl_N is None:
        other = batch.logp_old if batch.logp_reference is None else batch.logp_reference
        kl_N = choose("training.kl_estimator", params["kl_estimator"], KL_ESTIMATORS)(log_ratio_of(batch.logp, other))
    kl_loss = (batch.kl_weight * kl_N).sum()
    loss = policy_loss + params["beta"] * kl_loss
    trained = batch.weight > 0
    with torch.no_grad():
        clipped = torch.zeros_like(trained) if term.clipped_N is None else term.clipped_N
        metrics = {
            "tokens": trained.sum(),
            "clipped": (trained & clipped).sum(),
            "ratio": (term.ratio_N * trained).sum(),
            "kl": (kl_N * trained).sum(),
            "policy_loss": policy_loss.detach(),
            "kl_loss": kl_loss.detach(),
        }
    if params["nll_weight"]:
        right = batch.reward > 0
        loss = loss - params["nll_weight"] * (batch.weight * right * batch.logp).sum()
        metrics["nll"] = -(batch.logp.detach() * (trained & right)).sum()
    return loss, metrics
