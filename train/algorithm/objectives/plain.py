"""The losses of a value model and of fine-tuning.

Shapes: N trained tokens.
"""

import torch
from torch import Tensor

from train.algorithm.objectives.base import Metrics


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
